"""Asking z3."""

from __future__ import annotations

from typing import Any

import z3

__all__ = ["counterexample", "prove"]

_MILLISECONDS = 60_000


def prove(claim: Any, *given: Any) -> None:
    """The claim follows from what is given, for all values."""
    found = counterexample(claim, *given)
    assert found is None, f"it does not hold for {found}"


def counterexample(claim: Any, *given: Any) -> Any:
    """Values for which all that is given holds and the claim does not; `None` when there are none.

    Raises:
        AssertionError: z3 cannot tell in time.
    """
    solver = z3.Solver()
    solver.set("timeout", _MILLISECONDS)
    solver.add(*given, z3.Not(claim))
    result = solver.check()
    assert result != z3.unknown, f"z3 cannot tell: {solver.reason_unknown()}"
    return solver.model() if result == z3.sat else None
