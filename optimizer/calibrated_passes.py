"""Hands calibration data to the passes that can use it: those with a field `samples`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimizer.errors import InputError
from optimizer.pass_manager import Fixpoint, Pass

if TYPE_CHECKING:
    from optimizer.calibration import Samples

__all__ = ["check_calibration", "with_samples"]

_FIELD = "samples"


def check_calibration(calibration: object, pipeline: Sequence[Pass]) -> None:
    """Refuse calibration data that nothing would use.

    Raises:
        InputError: No pass takes it.
    """
    if calibration is not None and not any(map(_takes_samples, pipeline)):
        raise InputError(
            "calibration is for passes that quantize, and there is none: ask for precision='int8' or 'int4', "
            "or leave calibration out"
        )


def with_samples(pipeline: Sequence[Pass], samples: Samples | None) -> list[Pass]:
    """The same passes, with the data in those that take it and have none yet."""
    return [_with_samples(pass_, samples) for pass_ in pipeline]


def _with_samples(pass_: Pass, samples: Samples | None) -> Pass:
    if isinstance(pass_, Fixpoint):
        return dataclasses.replace(pass_, passes=tuple(with_samples(pass_.passes, samples)))
    if samples is not None and _takes_samples(pass_) and getattr(pass_, _FIELD) is None:
        return dataclasses.replace(pass_, **{_FIELD: samples})
    return pass_


def _takes_samples(pass_: Pass) -> bool:
    if isinstance(pass_, Fixpoint):
        return any(map(_takes_samples, pass_.passes))
    return any(field.name == _FIELD for field in dataclasses.fields(pass_))
