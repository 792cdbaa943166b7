"""What the plan of a whole model comes to for given sizes and threads."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from backends.relax.memory import in_pages, scratch_bytes
from backends.relax.packing import element_type
from backends.relax.plan import RELAX, Plan, Step, Value
from backends.relax.size_value import evaluate, with_derived
from optimizer.activation_memory import ActivationMemory

__all__ = ["memory_use"]


def memory_use(plan: Plan, sizes: Mapping[str, int] | None, threads: int, held: int = 0) -> ActivationMemory | None:
    """The memory of a run.

    Args:
        plan: what runs.
        sizes: symbolic sizes by name, as a run has found them; `None` before the first one.
        threads: of the pool.
        held: bytes of the arena that is there already, perhaps for larger sizes.

    Returns:
        `None` if sizes are symbolic and not given, or if no step is compiled.
    """
    compiled = [step for step in plan.steps if step.engine == RELAX]
    if not compiled or (sizes is None and any(step.memory.bytes < 0 for step in compiled)):
        return None
    known = with_derived(plan.derived, sizes or {})
    kernels = [name for step in compiled for name in step.memory.kernels]
    return ActivationMemory(
        arena=max(
            held, *(step.memory.placement(step.memory.room(step.memory.lengths(known))).bytes for step in compiled)
        ),
        outputs=_handed_on(plan, known),
        scratch=scratch_bytes([plan.workspaces.get(name, ()) for name in kernels], known, threads),
        threads=threads,
        least=max(step.memory.least(known) for step in compiled),
        complete=len(compiled) == len(plan.steps) and all(step.memory.complete for step in compiled),
    )


def _handed_on(plan: Plan, sizes: Mapping[str, int]) -> int:
    """The most bytes of what steps give, while later steps or the caller still need it."""
    last = {v.name: index for index, step in enumerate(plan.steps) for v in step.inputs}
    last |= {v.name: len(plan.steps) for v in plan.outputs}
    alive: dict[str, int] = {}
    most = 0
    for index, step in enumerate(plan.steps):
        alive |= _given(step, sizes)
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > index}
    return most


def _given(step: Step, sizes: Mapping[str, int]) -> dict[str, int]:
    if step.engine == RELAX and len(step.memory.outputs) == len(step.outputs):
        lengths = [evaluate(size, sizes) for size in step.memory.outputs]
    else:
        lengths = [_bytes(value, sizes) for value in step.outputs]
    return {value.name: in_pages(size) for value, size in zip(step.outputs, lengths, strict=True)}


def _bytes(value: Value, sizes: Mapping[str, int]) -> int:
    """Of a tensor; nothing for what is not one, or has no known rank."""
    if value.shape is None or "(" in value.dtype or value.dtype in ("", "string"):
        return 0
    return prod(evaluate(dim, sizes) for dim in value.shape) * element_type(value.dtype).itemsize
