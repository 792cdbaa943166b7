"""Products of rows with the weights of their experts, as ONNX: `grouped_mm` of PyTorch, and of mixtures of experts.

Rows come sorted by expert, with the row behind the last one of each (Gale et al. 2022, "MegaBlocks"). PyTorch's
exporter knows no translation. Here each expert is a product of its own: of a slice of the rows, whose bounds are known
when the model runs, and of a constant matrix, which other passes see as that of any other layer. So no product is done
for rows that are another expert's, and weights of experts without rows are not read.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from optimizer.errors import UnsupportedError

__all__ = ["expert_products"]

_TRANSFORMERS = "grouped_mm_fallback"
"""What the package `transformers` registers, for types that PyTorch's own operator does not take."""


def expert_products() -> dict[Any, Any]:
    """The operators that are registered, with their translations for the exporter's `custom_translation_table`."""
    import torch

    table: dict[Any, Any] = {torch.ops.aten._grouped_mm.default: _of_pytorch}
    if hasattr(torch.ops.transformers, _TRANSFORMERS):
        table[getattr(torch.ops.transformers, _TRANSFORMERS).default] = _of_experts
    return table


def _of_pytorch(rows: Any, weights: Any, offs: Any = None, bias: Any = None, out_dtype: int = -1) -> Any:
    op = _operators()
    if offs is None:
        result = op.MatMul(rows, weights)
    elif len(rows.shape) == 2 and len(weights.shape) == 3:
        result = _of_experts(rows, weights, offs)
    else:
        raise UnsupportedError("a grouped product with offsets is only known for rows [S, K] and weights [E, K, N]")
    if bias is not None:
        result = op.Add(result, bias)
    return result if out_dtype in (None, -1) else op.Cast(result, to=out_dtype)


def _of_experts(rows: Any, weights: Any, offs: Any) -> Any:
    """Rows `[S, K]` times weights `[E, K, N]`, of which the e-th is for the rows from `offs[e - 1]` to `offs[e]`.

    Rows behind the last one of all experts are zero in the result.
    """
    op = _operators()
    experts, _, width = weights.shape
    if not (isinstance(experts, int) and isinstance(width, int)):
        raise UnsupportedError("a grouped product is only known for weights of a fixed shape")
    ends = op.Cast(offs, to=int(ir.DataType.INT64))
    bounds = [op.Constant(value_ints=[0])]
    bounds += [op.Slice(ends, [each], [each + 1], [0]) for each in range(experts)]
    # In one node, which folds into as many constants: one by one, each would stand beside all weights for a while.
    matrices = op.Split(weights, axis=0, num_outputs=experts) if experts > 1 else [weights]
    products = [
        op.MatMul(op.Slice(rows, start, end, [0]), op.Squeeze(matrix, [0]))
        for matrix, start, end in zip(matrices, bounds[:-1], bounds[1:], strict=True)
    ]
    others = op.Sub(op.Shape(rows, start=0, end=1), bounds[-1])
    nothing = op.Expand(
        op.CastLike(op.Constant(value_float=0.0), rows), op.Concat(others, op.Constant(value_ints=[width]), axis=0)
    )
    return op.Concat(*products, nothing, axis=0)


def _operators() -> Any:
    from onnxscript.onnx_opset import opset23

    return opset23
