"""Small, valid, well-typed graphs for hypothesis.

A graph is built node by node from *families* of operators, each of which knows what it can be applied to. The first
dimension of each input is the symbol `N`, or 2; with the symbol the graph is valid for any `N` of at least 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from hypothesis import strategies as st

from optimizer.testing import blocks, families
from optimizer.testing.builder import Builder, Tensor

__all__ = ["DTYPES", "FAMILIES", "models"]

Family = Callable[[Builder, Tensor], None]

FAMILIES: Mapping[str, Family] = {
    "attention": blocks.attention,
    "attention-parts": blocks.attention_parts,
    "binary": families.binary,
    "casts": families.casts,
    "clip": families.clip,
    "compare": families.compare,
    "concat-split": families.concat_split,
    "constants": families.constants,
    "conv": blocks.conv,
    "einsum": blocks.einsum,
    "expand": families.expand,
    "function": blocks.function,
    "gather": families.gather,
    "gelu-parts": blocks.gelu_parts,
    "gemm": blocks.gemm,
    "identity": families.identity,
    "if": blocks.if_,
    "layer": blocks.layer,
    "loop": blocks.loop,
    "matmul": blocks.matmul,
    "neutral": families.neutral,
    "norm": blocks.norm,
    "norm-parts": blocks.norm_parts,
    "pool": blocks.pool,
    "reduce": families.reduce,
    "repeat": families.repeat,
    "reshape": families.reshape,
    "slice": families.slice_,
    "softmax": families.softmax,
    "squeeze": families.squeeze,
    "transpose": families.transpose,
    "unary": families.unary,
    "unsqueeze": families.unsqueeze,
}
"""The families by name: what each applies, if it fits."""

DTYPES = (
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.INT64,
    ir.DataType.INT32,
    ir.DataType.BOOL,
)
"""Element types that the families know."""


@st.composite
def models(
    draw: Callable[[st.SearchStrategy[Any]], Any],
    *,
    families: Sequence[str] = tuple(FAMILIES),
    max_steps: int = 8,
    opsets: Sequence[int] = (13, 17, 21, 23),
    dtypes: Sequence[ir.DataType] = (ir.DataType.FLOAT,),
    static: bool | None = None,
) -> ir.Model:
    """Models with one or two inputs, values that are used several times, and outputs in the middle.

    Args:
        draw: Given by hypothesis.
        families: What to build from; see `FAMILIES`.
        max_steps: How often a family is applied at most.
        opsets: Versions of the standard operators to choose from, 13 or later.
        dtypes: Element types of the inputs to choose from; see `DTYPES`.
        static: Whether all sizes are numbers; either when not given.
    """
    builder = Builder(draw, draw(st.sampled_from(opsets)))
    fixed = builder.flip() if static is None else static
    for _ in range(draw(st.integers(1, 2))):
        builder.input(dtypes, fixed)
    for name in draw(st.lists(st.sampled_from(families), min_size=1, max_size=max_steps)):
        # Mostly what was made last, so that chains grow.
        tensor = builder.tensors[-1] if builder.flip() else builder.choose(builder.tensors)
        FAMILIES[name](builder, tensor)
    _last(builder)
    return builder.model()


def _last(builder: Builder) -> None:
    """An output must not be an input or a constant."""
    families.unary(builder, builder.tensors[-1])
