"""Signatures as workers tell them, less those of models that are not as their configuration says: these are refused."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping

from gpulet.errors import ModelError
from gpulet.executors.base import Signature
from gpulet.repository.artifact import Declaration
from gpulet.repository.completing import check


class Declared(Mapping[str, Signature]):
    """A view of `signatures`; a mismatch is put into `refused` and told once, when its model is first looked for."""

    def __init__(
        self,
        signatures: Mapping[str, Signature],
        declarations: Mapping[str, Declaration],
        refused: MutableMapping[str, str],
        tell: Callable[..., None],
    ) -> None:
        self._signatures = signatures
        self._declarations = declarations
        self._refused = refused
        self._tell = tell
        self._checked: dict[str, tuple[Signature, str]] = {}

    def __getitem__(self, name: str) -> Signature:
        signature = self._signatures[name]
        checked, error = self._checked.get(name, (None, ""))
        if checked is not signature:
            error = self._check(name, signature)
        if error:
            self._refused[name] = error
            raise KeyError(name)
        return signature

    def _check(self, name: str, signature: Signature) -> str:
        error = ""
        try:
            if name in self._declarations:
                check(self._declarations[name], signature)
        except ModelError as mismatch:
            error = str(mismatch)
            self._tell("model_refused", model=name, error=error)
        self._checked[name] = (signature, error)
        return error

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._signatures if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
