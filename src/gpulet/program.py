"""A linear program that maximises the least of some sums, in HiGHS."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from highspy import Highs, HighsModelStatus, HighsVarType
from highspy.highs import highs_linear_expression, highs_var

from gpulet.device import Size

_GAP = 1e-7
_OPTIONS = {"output_flag": False, "threads": 1, "mip_rel_gap": _GAP, "mip_abs_gap": 0.0}


class Program:
    """Silent, on one thread, always the same."""

    def __init__(self) -> None:
        self._solver = Highs()  # type: ignore[no-untyped-call] # its stubs forgot this one
        for option, value in _OPTIONS.items():
            self._solver.setOptionValue(option, value)

    def variable(self, *, is_whole: bool = False) -> highs_var:
        """A variable from 0 up."""
        kind = HighsVarType.kInteger if is_whole else HighsVarType.kContinuous
        variable: highs_var = self._solver.addVariable(type=kind)
        return variable

    def at_most(self, less: highs_linear_expression, more: highs_linear_expression) -> None:
        """One sum must not exceed another."""
        self._solver.addConstr(less <= more)

    def cut(
        self, devices: int, ways: Sequence[Counter[Size]], *, is_whole: bool
    ) -> tuple[list[highs_var], Mapping[Size, highs_linear_expression]]:
        """How many devices are cut in each of these ways, and how many gpulets there are of each size then."""
        chosen = [self.variable(is_whole=is_whole) for _ in ways]
        self._solver.addConstr(Highs.qsum(chosen) <= devices)
        sizes = {size: None for way in ways for size in way}
        slots = {s: Highs.qsum([n * way[s] for n, way in zip(chosen, ways, strict=True) if way[s]]) for s in sizes}
        return chosen, slots

    def maximise_least(self, sums: Iterable[highs_linear_expression]) -> float:
        """Solve; the least of the sums."""
        least = self.variable()
        for each in sums:
            self._solver.addConstr(each - least >= 0)
        self._solver.maximize(least)
        status = self._solver.getModelStatus()
        assert status == HighsModelStatus.kOptimal, self._solver.modelStatusToString(status)
        return float(self._solver.val(least))

    def whole(self, variables: Iterable[highs_var]) -> list[int]:
        """The values of whole-numbered variables."""
        return [round(self._solver.val(variable)) for variable in variables]
