"""LitServe: raw bytes in and out, ZeroMQ between its processes (`fast_queue`), its own batching, instances are workers."""

from typing import Annotated

import litserve
from fastapi import Depends, Request, Response
from hosted import Hosted, Run, read_site


async def body(request: Request) -> bytes:
    """Not JSON, which is what LitServe parses unless a type is named."""
    return await request.body()


class Api(litserve.LitAPI):
    """One model."""

    run: Run

    def __init__(self, hosted: Hosted) -> None:
        batch = {"max_batch_size": hosted.batch, "batch_timeout": hosted.wait_us / 1e6} if hosted.batch > 1 else {}
        super().__init__(api_path=f"/{hosted.name}", **batch)
        self.hosted = hosted

    def setup(self, device: str) -> None:
        self.run = self.hosted.run()

    def decode_request(self, request: Annotated[bytes, Depends(body)]) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: bytes | list[bytes]) -> bytes | list[bytes]:
        if isinstance(x, list):
            return self.hosted.answers(self.run, x)
        return self.hosted.answers(self.run, [x])[0]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(content=output, media_type="application/octet-stream")


if __name__ == "__main__":
    site = read_site()
    server = litserve.LitServer(
        [Api(hosted) for hosted in site.models],
        accelerator="cpu",
        devices=1,
        workers_per_device=max(hosted.instances for hosted in site.models),
        fast_queue=True,
        timeout=site.deadline_ms / 1000 or 30,
    )
    server.run(host="127.0.0.1", port=site.http, generate_client_file=False, log_level="error")
