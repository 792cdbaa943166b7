"""What each layer costs in each form, from one run for each layer where a run for each form would take too long.

The noise of rounding grows with the square of the step between codes, whatever layer it is in: how much of it arrives
at the output is up to the layer. So a layer is measured in the form with its largest steps, in which it is told best
from chance, and its noise in another form is that times the square of how much smaller the steps are. What is left out
so, above all rounded activations, is the same factor for all layers in a form: it comes from one run of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.ir.query import array, constant, is_op
from optimizer.layer_board import FLOAT, Unit
from passes.quantization.knapsack import Choice

__all__ = ["estimated_effects", "step_of"]

_LARGEST_FACTOR = 16.0
"""Of a form: beyond it, what was measured is chance."""


def step_of(unit: Unit, form: str) -> float:
    """The root mean square of the steps between the codes of a layer's weight; NaN where they are not known.

    Args:
        unit: The layer.
        form: Of its slices.
    """
    steps = [
        scales
        for layer in unit.slices[form]
        for node in layer.after
        if (scales := _scales(node, unit.elements)) is not None
    ]
    return max((math.sqrt(float(np.square(each, dtype=np.float64).mean())) for each in steps), default=math.nan)


def _scales(node: ir.Node, elements: int) -> npt.NDArray[np.float32] | None:
    """Those of a weight of so many elements that a node dequantizes; NF4 has its scales dequantized, too."""
    codes = constant(node.inputs[0]) if is_op(node, "DequantizeLinear") else None
    if codes is None or math.prod(codes.shape.numpy()) != elements:
        return None
    value = node.inputs[1]
    maker = None if value is None else value.producer()
    if maker is not None and is_op(maker, "Cast"):
        value = maker.inputs[0]
    found = array(value)
    return None if found is None else found.astype(np.float32)


def estimated_effects(
    units: Sequence[Unit],
    allowed: Sequence[Sequence[str]],
    error: Callable[[Choice], float],
    tell: Callable[[int, int, str], None],
) -> list[dict[str, float]]:
    """The effect of each layer in each form it may take.

    Args:
        units: The layers.
        allowed: The forms of each.
        error: Measures the error of a mix.
        tell: Called after each run with how many are done, how many there are, and what it was.
    """
    steps = [
        {form: step_of(unit, form) for form in forms if form != FLOAT}
        for unit, forms in zip(units, allowed, strict=True)
    ]
    coarsest = [max((step, form) for form, step in of.items())[1] if of else FLOAT for of in steps]
    rest = dict.fromkeys(form for of in steps for form in of)
    total = sum(form != FLOAT for form in coarsest) + len(rest)
    noises: list[dict[str, float]] = []
    done = 0
    for index, (unit, form) in enumerate(zip(units, coarsest, strict=True)):
        alone = tuple(form if i == index else FLOAT for i in range(len(units)))
        largest = 0.0 if form == FLOAT else error(alone) ** 2
        noises.append({other: largest * (step / steps[index][form]) ** 2 for other, step in steps[index].items()})
        if form != FLOAT:
            done += 1
            tell(done, total, f"{unit.name} in {form}")
    for place, form in enumerate(rest):
        factor = _factor(form, coarsest, noises, error)
        for of, most in zip(noises, coarsest, strict=True):
            if form in of and form != most:
                of[form] *= factor
        tell(total - len(rest) + place + 1, total, f"all layers in {form}")
    return [
        {form: 0.0 if form == FLOAT else math.sqrt(of[form]) for form in forms}
        for of, forms in zip(noises, allowed, strict=True)
    ]


def _factor(
    form: str, coarsest: Sequence[str], noises: Sequence[Mapping[str, float]], error: Callable[[Choice], float]
) -> float:
    """How many times the noise of layers in a form is what their steps say, beside that in their coarsest forms."""
    with_it = [form in of and form != most for of, most in zip(noises, coarsest, strict=True)]
    here = error(tuple(form if has else FLOAT for has in with_it)) ** 2
    there = error(tuple(most if has else FLOAT for has, most in zip(with_it, coarsest, strict=True))) ** 2
    told = sum(of[form] for of, has in zip(noises, with_it, strict=True) if has)
    known = sum(of[most] for of, has, most in zip(noises, with_it, coarsest, strict=True) if has)
    if min(here, there, told, known) <= 0:
        return 1.0
    return min(max(here / told * known / there, 1 / _LARGEST_FACTOR), _LARGEST_FACTOR)
