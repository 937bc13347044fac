"""MLServer: JSON tensors over HTTP (it has no binary ones), raw ones over gRPC; its adaptive batching.

`parallel_workers` 0: its pool of processes costs more than these models; heavy ones run on threads, one an instance.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hosted import Hosted, read_site
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

SITE = read_site()
HOSTED = {hosted.name: hosted for hosted in SITE.models}


class Model(MLModel):
    """One model, found by its name."""

    async def load(self) -> bool:
        hosted: Hosted = HOSTED[self.name]
        self._run = hosted.run()
        self._threads = ThreadPoolExecutor(hosted.instances) if hosted.is_heavy else None
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        if self._threads:
            out = await asyncio.get_running_loop().run_in_executor(self._threads, self._run, rows)
        else:
            out = self._run(rows)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", out)])


async def main() -> None:
    """Serve until told to end."""
    settings = Settings(
        host="127.0.0.1",
        http_port=SITE.http,
        grpc_port=SITE.grpc,
        metrics_port=SITE.metrics,
        parallel_workers=0,
        gzip_enabled=False,
        debug=False,
        load_models_at_startup=False,
    )
    models = []
    for hosted in SITE.models:
        batch = {"max_batch_size": hosted.batch, "max_batch_time": hosted.wait_us / 1e6} if hosted.batch > 1 else {}
        models.append(ModelSettings(name=hosted.name, implementation=Model, **batch))
    server = MLServer(settings)
    await server.start(models)


if __name__ == "__main__":
    asyncio.run(main())
