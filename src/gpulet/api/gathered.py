"""Infer requests for applications: rows go in as into a model, and out come as many as the leaf stages made."""

from collections.abc import Sequence

from msgspec.structs import replace

from gpulet.api.forms import Checker, Form
from gpulet.api.infer import Reader
from gpulet.api.regions import Regions
from gpulet.api.rpc.infer import RpcReader
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
    """Reads HTTP requests for one application; its answers have rows of their own count."""

    def __init__(self, version: str, checker: Checker) -> None:
        super().__init__(version, checker)
        self._whole = Reader(version, _unbatched(checker))

    def answer(
        self, form: Form, outputs: Outputs, first_row: int, regions: Regions
    ) -> tuple[bytes, int, Sequence[Buffer]]:
        """All rows of all outputs."""
        return self._whole.answer(form, _all(self.signature, outputs), 0, regions)


class GatheredRpcReader(RpcReader):
    """The same over gRPC."""

    def __init__(self, version: str, checker: Checker) -> None:
        super().__init__(version, checker)
        self._whole = RpcReader(version, _unbatched(checker))

    def answer(self, form: Form, outputs: Outputs, first_row: int, regions: Regions) -> list[Buffer]:
        """All rows of all outputs."""
        return self._whole.answer(form, _all(self.signature, outputs), 0, regions)


def _unbatched(checker: Checker) -> Checker:
    return Checker(checker.name, replace(checker.signature, is_batched=False), 1)


def _all(signature: Signature, outputs: Outputs) -> list[Result]:
    """In the signature's order; a leaf that was never asked (a fan-out below 1) has no rows."""
    given = {result.tensor.name: result for result in outputs}
    return [given.get(t.name) or _nothing(t) for t in signature.outputs]


def _nothing(tensor: Tensor) -> Result:
    return Result(tensor, (0, *(max(n, 0) for n in tensor.shape[1:])), memoryview(b""))
