"""KServe's Python server: binary tensors over HTTP and gRPC; it does not batch (its agent, a sidecar, would).

Small models run on the event loop, where a run costs less than a thread's hand-off; heavy ones on threads, one an instance.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hosted import Hosted, read_site

SITE = read_site()
sys.argv[1:] = []  # kserve reads the command line too

import kserve  # noqa: E402
import uvicorn  # noqa: E402
from grpc import aio  # noqa: E402
from kserve.protocol.rest import server as rest  # noqa: E402


class Model(kserve.Model):
    """One model."""

    def __init__(self, hosted: Hosted) -> None:
        super().__init__(hosted.name)
        self._run = hosted.run()
        self._threads = ThreadPoolExecutor(hosted.instances) if hosted.is_heavy else None
        self.ready = True

    async def predict(
        self, payload: kserve.InferRequest, headers: dict[str, str] | None = None, _: Any = None
    ) -> kserve.InferResponse:
        rows = payload.inputs[0].as_numpy()
        if self._threads:
            out = await asyncio.get_running_loop().run_in_executor(self._threads, self._run, rows)
        else:
            out = self._run(rows)
        output = kserve.InferOutput("y", list(out.shape), "FP32")
        output.set_data_from_numpy(out, binary_data=True)
        return kserve.InferResponse(payload.id or "", self.name, [output])


def listen_on_loopback() -> None:
    """KServe binds every address and has no option for it."""
    configuration, make = uvicorn.Config, aio.server

    def bound(*told: Any, **options: Any) -> aio.Server:
        server = make(*told, **options)
        bind = server.add_insecure_port
        server.add_insecure_port = lambda address: bind(address.replace("[::]", "127.0.0.1"))
        return server

    rest.uvicorn.Config = lambda *told, **options: configuration(*told, **{**options, "host": "127.0.0.1"})
    aio.server = bound


if __name__ == "__main__":
    listen_on_loopback()
    server = kserve.ModelServer(
        http_port=SITE.http, grpc_port=SITE.grpc, workers=1, enable_grpc=True, enable_latency_logging=False
    )
    server.start([Model(hosted) for hosted in SITE.models])
