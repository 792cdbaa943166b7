"""Hands calibration data to the passes that can use it, progress to those that take long, and takes what they chose.

They have a field `samples`, a field `progress`, and others of the same kind: `chosen`, `speed`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from optimizer.errors import InputError
from optimizer.pass_manager import Fixpoint, Pass

if TYPE_CHECKING:
    from optimizer.calibration import Samples

__all__ = ["check_calibration", "with_samples"]

_FIELD = "samples"
_PROGRESS = "progress"

Tell = Callable[[str], None]


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


def with_samples(pipeline: Sequence[Pass], samples: Samples | None, tell: Tell, **more: object) -> list[Pass]:
    """The same passes, with the data in those that take it and have none yet.

    Args:
        pipeline: The passes.
        samples: The data, if there are any.
        tell: Shows how far a pass is that goes layer by layer.
        more: For the fields of these names, in those passes that have them.
    """
    return [_with_samples(pass_, samples, tell, more) for pass_ in pipeline]


def _with_samples(pass_: Pass, samples: Samples | None, tell: Tell, more: Mapping[str, object]) -> Pass:
    if isinstance(pass_, Fixpoint):
        return dataclasses.replace(pass_, passes=tuple(with_samples(pass_.passes, samples, tell, **more)))
    given: dict[str, object] = {}
    if samples is not None and _takes(pass_, _FIELD) and getattr(pass_, _FIELD) is None:
        given[_FIELD] = samples
    if _takes(pass_, _PROGRESS) and getattr(pass_, _PROGRESS) is None:
        given[_PROGRESS] = lambda done, total, name: tell(f"layer {done} of {total}, {name}")
    given.update({n: v for n, v in more.items() if v is not None and _takes(pass_, n) and getattr(pass_, n) is None})
    return dataclasses.replace(pass_, **given) if given else pass_


def _takes_samples(pass_: Pass) -> bool:
    if isinstance(pass_, Fixpoint):
        return any(map(_takes_samples, pass_.passes))
    return _takes(pass_, _FIELD)


def _takes(pass_: Pass, name: str) -> bool:
    return any(field.name == name for field in dataclasses.fields(pass_))
