"""NVIDIA Triton through PyTriton: its server's HTTP, gRPC, dynamic batcher; models are Python, instances are threads.

The same process as Triton's own ONNX Runtime backend would have is not in any package: its figures are quoted instead.
"""

import numpy as np
from hosted import Hosted, read_site
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def infer(hosted: Hosted):  # noqa: ANN201 (PyTriton's decorator has no types)
    """One instance."""
    run = hosted.run()

    @batch
    def answer(x: np.ndarray) -> list[np.ndarray]:
        return [run(x)]

    return answer


def bind(triton: Triton, hosted: Hosted) -> None:
    """One model; PyTriton's batch dimension is there even where requests are not put together."""
    triton.bind(
        model_name=hosted.name,
        infer_func=[infer(hosted) for _ in range(hosted.instances)],
        inputs=[Tensor(name="x", dtype=np.float32, shape=hosted.shape)],
        outputs=[Tensor(name="y", dtype=np.float32, shape=hosted.outputs)],
        config=ModelConfig(
            max_batch_size=hosted.batch,
            batcher=DynamicBatcher(max_queue_delay_microseconds=hosted.wait_us if hosted.batch > 1 else 0),
        ),
        strict=False,
    )


if __name__ == "__main__":
    site = read_site()
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=site.http,
        grpc_address="127.0.0.1",
        grpc_port=site.grpc,
        metrics_address="127.0.0.1",
        metrics_port=site.metrics,
        allow_gpu_metrics=False,
    )
    with Triton(config=config) as triton:
        for hosted in site.models:
            bind(triton, hosted)
        triton.serve()
