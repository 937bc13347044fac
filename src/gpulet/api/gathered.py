"""Infer requests for applications: rows go in as into a model, and out come as many as the leaf stages made."""

from msgspec.structs import replace

from gpulet.api.infer import Form, Reader
from gpulet.application import Application
from gpulet.executors.base import Buffer, Outputs, Result, Signature, Tensor


def gathered_signature(application: Application, signature: Signature) -> Signature:
    """What an application takes and gives when each of its models has this signature.

    The outputs are those of its leaf stages, as `STAGE.output` where there are several leaves.
    """
    leaves = application.leaves
    outputs = [
        Tensor(f"{stage.name}.{t.name}" if len(leaves) > 1 else t.name, t.datatype, t.shape)
        for stage in leaves
        for t in signature.outputs
    ]
    return replace(signature, outputs=tuple(outputs))


class GatheredReader(Reader):
    """Reads requests for one application; its answers have rows of their own count."""

    def __init__(self, name: str, version: str, signature: Signature, max_batch: int) -> None:
        super().__init__(name, version, signature, max_batch)
        self._whole = Reader(name, version, replace(signature, is_batched=False), max_batch)

    def answer(self, form: Form, outputs: Outputs, first_row: int) -> tuple[bytes, int, list[Buffer]]:
        """All rows of all outputs; a leaf that was never asked (a fan-out below 1) has none."""
        given = {result.tensor.name: result for result in outputs}
        return self._whole.answer(form, [given.get(t.name) or _nothing(t) for t in self.signature.outputs], 0)


def _nothing(tensor: Tensor) -> Result:
    return Result(tensor, (0, *(max(n, 0) for n in tensor.shape[1:])), memoryview(b""))
