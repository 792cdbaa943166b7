"""Matrix products as tensor expressions that the schedule rules know.

The rules need the columns of B to lie next to each other. A constant B is packed in panels [..., P, K, W] when the
model is compiled (W
columns a panel, chosen by the target); any other B is used as it lies, [..., K, N], transposed first if need be.
Of types that the target multiplies T at a time (bfloat16 in pairs, bytes by four) the panels are
[..., P, ceil(K/T), W * T] (`packing.panels`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_ints
from backends.relax.checks import require, retyped
from backends.relax.emitter import Emitter
from backends.relax.four_bit_products import Bytes
from backends.relax.four_bit_products import product as four_bit_product
from backends.relax.four_bits import FourBits
from backends.relax.known import same
from backends.relax.scalars import cast
from backends.relax.values import Refused, prim, static_int

FLOATS = ("float32", "float64", "float16", "bfloat16")
MATMUL = "matmul"
_HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Panels:
    """How a constant matrix [K, N] is packed.

    Attributes:
        width: columns in a panel.
        columns: N.
        depth: K.
        together: how many of its rows share one.
    """

    width: int
    columns: int
    depth: int
    together: int

    @classmethod
    def of(cls, ctx: Emitter, dtype: str, rows: int | None, columns: int, depth: int, taps: int = 1) -> Panels:
        """As the target wants them for so many rows of the other factor (`None` if that is symbolic).

        Args:
            ctx: the emitter.
            dtype: of the elements.
            rows: of the other factor.
            columns: N.
            depth: K.
            taps: how many matrices are summed over.
        """
        together = ctx.tiles.together(dtype)
        kind = dtype if dtype == "uint8" else "float32"
        width = ctx.tiles.panel_width(rows, columns, taps * -(-depth // together), kind, taps)
        return cls(width, columns, depth, together)

    @property
    def shape(self) -> list[int]:
        """The last three axes of the packed weight."""
        count = -(-self.columns // self.width)
        return [count, -(-self.depth // self.together), self.width * self.together]

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the functions of `packing`."""
        return {"width": self.width, **({"together": self.together} if self.together > 1 else {})}

    def at(self, k: tirx.Expr, column: tirx.Expr) -> list[tirx.Expr]:
        """Where an element of the matrix lies."""
        panel, place = tirx.floordiv(column, self.width), tirx.floormod(column, self.width)
        if self.together == 1:
            return [panel, k, place]
        return [panel, tirx.floordiv(k, self.together), place * self.together + tirx.floormod(k, self.together)]


def contract(
    ctx: Emitter,
    a: ir.Value | None,
    b: ir.Value | None,
    *,
    transposed_a: bool = False,
    transposed_b: bool = False,
    alpha: float = 1.0,
) -> relax.Var:
    """Alpha * A x B with numpy's rules for batch axes and vectors."""
    four_bits = None if transposed_a else FourBits.of(ctx, b, transposed=transposed_b)
    quantized = None if four_bits is None else Bytes.of(ctx, a)
    if four_bits is not None and quantized is not None:
        return _scaled(ctx, four_bit_product(ctx, ctx.x(quantized.value), four_bits, quantized), alpha)
    left = ctx.x(a)
    if transposed_a:
        left = ctx.emit(relax.op.permute_dims(left))
    return times(ctx, left, b, transposed=transposed_b, alpha=alpha)


def times(
    ctx: Emitter, left: relax.Var, b: ir.Value | None, *, transposed: bool = False, alpha: float = 1.0
) -> relax.Var:
    """Alpha * left x B, where B's last two axes may be transposed."""
    four_bits = FourBits.of(ctx, b, transposed=transposed)
    if four_bits is not None:
        return _scaled(ctx, four_bit_product(ctx, left, four_bits), alpha)
    b, transposed = _before_transpose(ctx, b, transposed)
    packed = b is not None and ctx.is_weight(b) and ctx.rank(b) >= 2 and ctx.dtype(b) in FLOATS
    if packed and b is not None:
        if ctx.dtype(b) not in _HALF:
            return _packed(ctx, left, b, transposed, alpha)
        return _scaled(ctx, _packed(ctx, left, b, transposed, 1.0), alpha)  # a weight is not rounded again
    right = ctx.x(b)
    if transposed:
        rank = right.ty.ndim
        right = ctx.emit(relax.op.permute_dims(right, [*range(rank - 2), rank - 1, rank - 2]))
    return _scaled(ctx, _plain(ctx, left, right), alpha)


def _scaled(ctx: Emitter, result: relax.Var, alpha: float) -> relax.Var:
    return result if alpha == 1.0 else ctx.emit(relax.op.multiply(result, relax.const(alpha, str(result.ty.dtype))))


def _before_transpose(ctx: Emitter, b: ir.Value | None, transposed: bool) -> tuple[ir.Value | None, bool]:
    """The weight whose two last axes a Transpose swaps to give B: packing does that once for all runs.

    Such a node is left where the weight has other users, as a table of embeddings that also gives the logits.
    """
    node = None if b is None else b.producer()
    if node is None or node.op_type != "Transpose" or node.domain not in ("", "ai.onnx"):
        return b, transposed
    source = node.inputs[0]
    if source is None or not ctx.is_weight(source):
        return b, transposed
    rank = ctx.rank(source)
    order = get_ints(node, "perm", list(range(rank))[::-1])
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    return (source, not transposed) if rank >= 2 and order == swapped else (b, transposed)


def _packed(ctx: Emitter, left: relax.Var, b: ir.Value, transposed: bool, alpha: float) -> relax.Var:
    shape = ctx.static_shape(b)
    *batch, k, n = [*shape[:-2], shape[-1], shape[-2]] if transposed else shape
    rows = _rows(left, bool(batch) and any(d != 1 for d in batch))
    panels = Panels.of(ctx, ctx.dtype(b), rows, n, k)
    weight = ctx.weight(b, "panels", [*batch, *panels.shape], **panels.options, transposed=transposed, alpha=alpha)
    return product(ctx, left, weight, n, panels)


def _rows(left: relax.Var, batched: bool) -> int | None:
    """Number of rows that share one B, if it is known."""
    sizes = [static_int(d) for d in left.ty.shape.values]
    own = sizes[-2:-1] if batched else sizes[:-1]
    total = 1
    for size in own:
        if size is None:
            return None
        total *= size
    return total


def _plain(ctx: Emitter, left: relax.Var, right: relax.Var) -> relax.Var:
    """B as it lies: [..., K, N]; a vector becomes a matrix of one column or row."""
    if left.ty.ndim == 0 or right.ty.ndim == 0:
        raise Refused("a matrix product of a scalar")
    if right.ty.ndim == 1:
        column = ctx.emit(relax.op.expand_dims(right, [1]))
        return ctx.emit(relax.op.squeeze(_plain(ctx, left, column), [-1]))
    return product(ctx, left, right, right.ty.shape.values[-1], None)


def product(
    ctx: Emitter, left: relax.Var, right: relax.Var, columns: int | tirx.Expr, panels: Panels | None
) -> relax.Var:
    """The tensor expression; `panels` says how a packed B lies. uint8 times int8 is added up in int32."""
    if left.ty.ndim == 1:
        row = ctx.emit(relax.op.expand_dims(left, [0]))
        return ctx.emit(relax.op.squeeze(product(ctx, row, right, columns, panels), [-2]))
    tail = 3 if panels else 2
    dtype = str(left.ty.dtype)
    total = "int32" if dtype == "uint8" else dtype
    left, right = _matching(ctx, left, right, tail, panels)

    def build(x: te.Tensor, w: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, x.shape[-1]), "k")
        lead = _broadcast(list(x.shape[:-2]), list(w.shape[: len(w.shape) - tail]))

        def element(*index: tirx.Expr) -> tirx.Expr:
            *batch, i, j = index
            own = [_at(p, d) for p, d in zip(batch[len(batch) - (len(x.shape) - 2) :], x.shape[:-2], strict=True)]
            other = [_at(p, d) for p, d in zip(batch[len(batch) - (len(w.shape) - tail) :], w.shape, strict=False)]
            factor = w[(*other, *(panels.at(k, j) if panels else (k, j)))]
            return te.sum(cast(x[(*own, i, k)], total) * cast(factor, total), axis=k)

        attrs = {"tersor.kernel": MATMUL, "tersor.width": panels.width if panels else 0}
        return te.compute((*lead, x.shape[-2], prim(columns)), element, name="matmul", attrs=attrs)

    if {"uint8": "int8"}.get(dtype, dtype) != str(right.ty.dtype):
        raise Refused(f"a matrix product of {dtype} and {right.ty.dtype}")
    return ctx.te(build, left, right, primfunc_name_hint="matmul")


def _matching(
    ctx: Emitter, left: relax.Var, right: relax.Var, tail: int, panels: Panels | None
) -> tuple[relax.Var, relax.Var]:
    """The operands with one expression for the axis that they share; what cannot be proved, the run checks.

    Raises:
        Refused: batch axes of which only the run knows whether they broadcast.
    """
    own, other = [prim(d) for d in left.ty.shape.values], [prim(d) for d in right.ty.shape.values]
    for a, b in zip(own[:-2][::-1], other[: len(other) - tail][::-1], strict=False):
        if not (static_int(a) == 1 or static_int(b) == 1 or same(ctx, a, b)):
            raise Refused(f"a matrix product over batch axes of {a} and {b}")
    what = "columns of the left and rows of the right factor"
    depth = prim(panels.depth) if panels else other[-2]
    if static_int(own[-1]) is None and static_int(depth) is not None:
        return retyped(ctx, left, [*own[:-1], depth], what), right
    require(ctx, own[-1], depth, what)
    return left, right


def _at(index: tirx.Expr, extent: tirx.Expr) -> tirx.Expr:
    return prim(0) if static_int(extent) == 1 else index


def _broadcast(a: list[tirx.Expr], b: list[tirx.Expr]) -> list[tirx.Expr]:
    result = []
    for k in range(max(len(a), len(b))):
        x = a[len(a) - 1 - k] if k < len(a) else prim(1)
        y = b[len(b) - 1 - k] if k < len(b) else prim(1)
        result.append(y if static_int(x) == 1 else x)
    return result[::-1]
