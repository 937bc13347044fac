"""A linear program over counts of gpulets, in HiGHS: the least of some sums as large as can be, or one sum as small."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import inf

from highspy import Highs, HighsModelStatus, HighsVarType, SolutionStatus
from highspy.highs import highs_linear_expression, highs_var

from gpulet.device import Size

_GAP = 1e-7
_EVERY_NODE = 2**31 - 1


class Program:
    """Silent, on one thread, always the same: it ends within a `gap` or after `most_nodes`, never by the clock.

    Constraints are kept to a millionth. (With tolerances of 1e-9 HiGHS took plans for the best that were 10 % worse.)
    """

    def __init__(self, gap: float = _GAP, most_nodes: int = _EVERY_NODE) -> None:
        self._solver = Highs()  # type: ignore[no-untyped-call] # its stubs forgot this one
        limits = {"mip_rel_gap": gap, "mip_abs_gap": 0.0, "mip_max_nodes": most_nodes}
        for option, value in {"output_flag": False, "threads": 1, **limits}.items():
            self._solver.setOptionValue(option, value)

    def variable(self, *, is_whole: bool = False) -> highs_var:
        """A variable from 0 up."""
        kind = HighsVarType.kInteger if is_whole else HighsVarType.kContinuous
        variable: highs_var = self._solver.addVariable(type=kind)
        return variable

    def at_most(self, less: highs_linear_expression, more: highs_linear_expression | float) -> None:
        """One sum must not exceed another."""
        self._solver.addConstr(less <= more)

    def at_least(self, more: highs_linear_expression, less: float) -> None:
        """A sum must not fall short of a number."""
        self._solver.addConstr(more >= less)

    def cut(
        self, devices: int, ways: Sequence[Counter[Size]], *, is_whole: bool
    ) -> tuple[list[highs_var], Mapping[Size, highs_linear_expression]]:
        """How many devices are cut in each of these ways, and how many gpulets there are of each size then."""
        chosen = [self.variable(is_whole=is_whole) for _ in ways]
        self._solver.addConstr(Highs.qsum(chosen) <= devices)
        sizes = {size: None for way in ways for size in way}
        slots = {s: Highs.qsum([n * way[s] for n, way in zip(chosen, ways, strict=True) if way[s]]) for s in sizes}
        return chosen, slots

    def maximise_least(self, sums: Iterable[highs_linear_expression], most: float = inf) -> float:
        """Solve; the least of the sums, where more than `most` of any is worth no more."""
        least = self._solver.addVariable(ub=most)
        for each in sums:
            self._solver.addConstr(each - least >= 0)
        self._solver.maximize(least)
        assert self._is_solved(), "nothing of everything is always possible"
        return float(self._solver.val(least))

    def minimise(self, total: highs_linear_expression) -> bool:
        """Solve for the smallest total; whether anything was found that keeps the constraints."""
        self._solver.minimize(total)
        return self._is_solved()

    def whole(self, variables: Iterable[highs_var]) -> list[int]:
        """The values of whole-numbered variables."""
        return [round(self._solver.val(variable)) for variable in variables]

    def _is_solved(self) -> bool:
        """Whether there is a solution, be it the best of the nodes that were looked at."""
        status = self._solver.getModelStatus()
        ends = {HighsModelStatus.kOptimal, HighsModelStatus.kSolutionLimit, HighsModelStatus.kInfeasible}
        assert status in ends, self._solver.modelStatusToString(status)
        found: bool = self._solver.getInfo().primal_solution_status == SolutionStatus.kSolutionStatusFeasible
        return found
