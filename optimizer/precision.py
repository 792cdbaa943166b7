"""The number formats that `optimize()` can compute in, and what is to be said of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimizer.errors import PrecisionError
from optimizer.precision_policy import PrecisionPolicy

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["PRECISIONS", "check_precision", "precision_notes"]

PRECISIONS = ("float32", "bfloat16", "float16", "int8", "int4")


def check_precision(precision: object, target: str, available: Sequence[str]) -> None:
    """Refuse what is unknown, or what the target does not compute in.

    Raises:
        PrecisionError: It is refused.
    """
    if isinstance(precision, PrecisionPolicy):
        precision = next((name for name in ("int8", "int4") if name not in available), "int8")
    if precision not in PRECISIONS:
        raise PrecisionError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}, or a PrecisionPolicy")
    if precision not in available:
        # A processor widens each float16 to compute with it: nothing would be faster.
        hint = "; bfloat16 takes as many bytes" if precision == "float16" and "bfloat16" in available else ""
        raise PrecisionError(
            f"precision {precision!r} is not available for target {target!r}; available: {', '.join(available)}{hint}"
        )


def precision_notes(model: ir.Model, precision: str | PrecisionPolicy) -> list[str]:
    """What the report says of a model that was to be computed in `precision`, after the passes."""
    from optimizer.ir.walk import all_nodes  # ONNX, which loading a saved model does without

    if isinstance(precision, PrecisionPolicy):
        return []  # what was chosen says it all
    if precision in ("int8", "int4"):
        return _quantized_notes(model, precision)
    if precision == "float32":
        return []
    types = Counter(value.dtype.name for node in all_nodes(model) for value in node.outputs if value.dtype is not None)
    notes = [
        f"precision {precision} is for float32: {types[name]} values of {name.lower()} stay what they are"
        for name in ("BFLOAT16", "FLOAT16", "DOUBLE")
        if types[name] and name != precision.upper()
    ]
    if not types[precision.upper()]:
        return [
            *notes,
            f"nothing computes in {precision}: no float32 product or convolution was found that it is defined for",
        ]
    return [*notes, *_wide_notes(model)] if precision == "float16" else notes


def _wide_notes(model: ir.Model) -> list[str]:
    """What float16 was not used for."""
    from optimizer.ir.walk import all_nodes

    wide = Counter(
        node.op_type
        for node in all_nodes(model)
        if node.op_type not in ("Cast", "Constant")
        and any(v.dtype is not None and v.dtype.name == "FLOAT" for v in node.outputs)
    )
    if not wide:
        return []
    names = ", ".join(f"{count} {op_type}" for op_type, count in sorted(wide.items()))
    return [f"precision float16: {wide.total()} operators stay float32, for range or accuracy ({names})"]


def _quantized_notes(model: ir.Model, precision: str) -> list[str]:
    from optimizer.ir.query import constant, input_at, is_op
    from optimizer.ir.walk import all_nodes

    layers = [node for node in all_nodes(model) if is_op(node, "Conv", "Gemm", "MatMul", "MatMulInteger")]
    rounded = [n for n in layers if n.op_type == "MatMulInteger" or _is_dequantized(input_at(n, 1))]
    left = Counter(n.op_type for n in layers if n not in rounded and constant(input_at(n, 1)) is not None)
    if not rounded:
        return [f"nothing computes in {precision}: no layer was found that it is worth while for"]
    if not left:
        return []
    names = ", ".join(f"{count} {op_type}" for op_type, count in sorted(left.items()))
    return [f"precision {precision}: {len(rounded)} layers are quantized, {sum(left.values())} are not ({names})"]


def _is_dequantized(value: ir.Value | None) -> bool:
    from optimizer.ir.query import is_op

    return value is not None and is_op(value.producer(), "DequantizeLinear")
