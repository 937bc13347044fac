"""What gRPC itself costs: grpcio's asyncio server with one handler that answers the same bytes, parsing nothing."""

import asyncio
import sys
from pathlib import Path

import grpc


class Echo(grpc.GenericRpcHandler):
    """Every method."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self._respond)

    async def _respond(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return self._answer


async def main(port: str, answer: bytes) -> None:
    """Serve on loopback until ended."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(answer),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_bytes()))
