"""`tune`: how its limit is written, what may be chosen in a compiled model, and what the report says of it.

Choices are named by strings, such as `panel 128x768x3072` (rows, depth, columns), and have whole numbers as values;
`backends/cpu/choices.py` says which there are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optimizer.errors import InputError
from optimizer.target import Target
from optimizer.text import seconds

__all__ = ["Change", "Decision", "Tuning", "parse_tune"]

_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min)?\s*")
_SECONDS = {None: 1.0, "s": 1.0, "m": 60.0, "min": 60.0}
_MOST_CHANGES = 8


@dataclass(frozen=True)
class Decision:
    """A choice of the code generator, and what else it may choose.

    Attributes:
        key: What is decided, by kind and sizes.
        value: What was chosen.
        costs: The values that can be had, the analytic one first; each with the cost that the tile model predicts,
            over that of the analytic one.
        nodes: The nodes whose kernels it shapes.
    """

    key: str
    value: int
    costs: dict[int, float]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """A choice that was measured to be better than the analytic one.

    Attributes:
        key: What is decided.
        before: The analytic value.
        after: The value that is used.
        predicted: The time of its kernels over that of the analytic choice, as the tile model has it.
        measured: The same, as it was measured.
        nodes: How many nodes it is for.
    """

    key: str
    before: int
    after: int
    predicted: float
    measured: float
    nodes: int


@dataclass(frozen=True)
class Tuning:
    """What measuring the choices of a model came to.

    Attributes:
        limit: Seconds that it was allowed.
        seconds: That it took.
        decisions: How many choices the model has that there is an alternative to.
        known: To how many of these the cache had the answer.
        measured: How many alternatives were measured now.
        left: How many could not be in the time; the next call goes on with them.
        changes: The choices that are not the analytic ones, those that save most first.
        ratio: The time of a run over that of the same model with the choices that it had before this call; `None`
            where none was changed.
        note: Why nothing was measured, or what else is worth knowing; mostly `""`.
    """

    limit: float
    seconds: float
    decisions: int
    known: int = 0
    measured: int = 0
    left: int = 0
    changes: tuple[Change, ...] = ()
    ratio: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tuning:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError: The data is not such a record.
        """
        return cls(**{**data, "changes": tuple(Change(**change) for change in data["changes"])})

    def __str__(self) -> str:
        lines = [
            f"tuned in {seconds(self.seconds)} of {seconds(self.limit)}: {self.decisions} choices, {self.known} known"
            f" from the cache, {self.measured} alternatives measured, {self.left} left, {len(self.changes)} changed"
        ]
        if self.ratio is not None:
            lines.append(f"  a run takes {self.ratio:.3f} times as long as before")
        for change in self.changes[:_MOST_CHANGES]:
            lines.append(
                f"  {change.key}: {change.after}, not {change.before}: {change.measured:.2f} of its time"
                f" (predicted: {change.predicted:.2f}; {change.nodes} nodes)"
            )
        more = len(self.changes) - _MOST_CHANGES
        return "\n".join([*lines, *([f"  and {more} more"] if more > 0 else []), *([self.note] if self.note else [])])


def parse_tune(tune: object, target: Target, memory_budget: object = None) -> float | None:
    """Seconds of a limit such as `"30s"`, `"2m"` or 30; `None` for none.

    Args:
        tune: The parameter of `optimize()`.
        target: Has to be this machine, as nothing can be measured for another one.
        memory_budget: Of the same call.

    Raises:
        InputError: It is no time, or there is nothing that could be tuned.
    """
    if tune is None:
        return None
    limit = _seconds(tune)
    if target.cpu is None or target.cpu.name != "native":
        raise InputError(f"tune={tune!r} measures on this machine, not for target {str(target)!r}; use target='cpu'")
    if memory_budget is not None:
        raise InputError(f"tune={tune!r} and memory_budget={memory_budget!r} do not go together; leave one of them out")
    return limit


def _seconds(tune: object) -> float:
    number = math.nan
    if isinstance(tune, (int, float)) and not isinstance(tune, bool):
        number = float(tune)
    elif isinstance(tune, str) and (found := _FORM.fullmatch(tune)) is not None:
        number = float(found[1]) * _SECONDS[found[2]]
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"tune must be a time such as '30s', '2m' or 30 (seconds), more than 0, not {tune!r}")
    return number
