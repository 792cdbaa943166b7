"""ConvTranspose, Col2Im and DeformConv: convolutions that are a matrix product and a movement of its rows.

Shape letters: N batch, G groups, C channels a group, M output channels a group, I input sizes, O output sizes, K taps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import declared_shape, get_int, get_ints, get_str
from backends.relax.checks import require
from backends.relax.contraction import FLOATS, Panels, product
from backends.relax.emitter import Emitter
from backends.relax.known import same
from backends.relax.registry import emits
from backends.relax.scalars import cast
from backends.relax.values import ChannelsLast, Refused, Result, prim, static_int


@dataclass(frozen=True)
class _Spread:
    """How a small image is spread over a large one: element i and tap k meet at i * stride + k * dilation - before."""

    inputs: tuple[tirx.Expr, ...]
    outputs: tuple[tirx.Expr, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[tirx.Expr, ...]

    @property
    def covers(self) -> bool:
        """Whether each output meets one element and one tap alone, as where an image is made larger."""
        dense = all(
            k == stride and d == 1 for k, stride, d in zip(self.kernel, self.strides, self.dilations, strict=True)
        )
        return dense and all(static_int(b) == 0 for b in self.before)

    def only(self, position: Sequence[tirx.Expr], column: Callable[..., tirx.Expr]) -> tirx.Expr:
        """`column(input position, taps)` of the pair that meets at a position, if the spread `covers`."""
        sources = [tirx.floordiv(o, prim(stride)) for o, stride in zip(position, self.strides, strict=True)]
        taps = [tirx.floormod(o, prim(stride)) for o, stride in zip(position, self.strides, strict=True)]
        return column(sources, taps)

    def total(
        self, position: Sequence[tirx.Expr], taps: Sequence[tirx.IterVar], column: Callable[..., tirx.Expr], dtype: str
    ) -> tirx.Expr:
        """The sum over all pairs that meet at a position of `column(input position, taps)`."""
        sources, meets = [], []
        for o, k, size, stride, dilation, before in zip(
            position, taps, self.inputs, self.strides, self.dilations, self.before, strict=True
        ):
            offset = o + before - cast(k, "int64") * dilation
            source = tirx.floordiv(offset, prim(stride))
            sources.append(source)
            meets += [offset >= 0, tirx.EQ(tirx.floormod(offset, prim(stride)), prim(0)), source < size]
        value = tirx.if_then_else(tirx.all(*meets), column(sources, taps), tirx.const(0, dtype))
        return te.sum(value, axis=list(taps))


@emits("ConvTranspose")
def conv_transpose(ctx: Emitter, node: ir.Node) -> Result:
    """Multiply every input pixel with the whole kernel, and add up where the results meet."""
    x, w = node.inputs[:2]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    groups = get_int(node, "group", 1)
    channels, per_group, *kernel = ctx.static_shape(w, "the kernel")
    batch, given, *sizes = ctx.shape(x)
    require(ctx, given, channels, "channels of the input and of the weight")
    spread = _transposed(ctx, node, sizes, kernel)
    taps = math.prod(kernel)
    rows = ctx.derived(batch * math.prod(sizes, start=prim(1)))
    data = _by_group(ctx, ctx.channels_last(x), rows, groups, channels // groups)
    products_GRKM = _times_kernel(ctx, data, w, groups, taps * per_group)
    operands = [products_GRKM] + ([ctx.x(bias)] if bias is not None else [])
    dtype = ctx.dtype(x)
    # With padding at the end, or more of it than the taps reach, an output may lie outside.
    covers = spread.covers and all(
        same(ctx, out, size * stride) for out, size, stride in zip(spread.outputs, sizes, spread.strides, strict=True)
    )

    def build(products: te.Tensor, *bias_: te.Tensor) -> te.Tensor:
        axes = [te.reduce_axis((0, k), name=f"k{i}") for i, k in enumerate(kernel)]

        def total(*index: tirx.Expr) -> tirx.Expr:
            n, *position, c = index

            def column(source: Sequence[tirx.Expr], k: Sequence[tirx.IterVar]) -> tirx.Expr:
                row = _flat([n, *source], [batch, *sizes])
                tap = _flat([cast(t, "int64") for t in k], [prim(s) for s in kernel])
                return products(
                    tirx.floordiv(c, prim(per_group)), row, tap * per_group + tirx.floormod(c, prim(per_group))
                )

            return spread.only(position, column) if covers else spread.total(position, axes, column, dtype)

        result = te.compute((batch, *spread.outputs, prim(groups * per_group)), total, name="spread")
        if not bias_:
            return result
        return te.compute(result.shape, lambda *i: result(*i) + bias_[0](i[-1]), name="conv_transpose")

    return ChannelsLast(ctx.te(build, *operands))


@emits("Col2Im")
def col2im(ctx: Emitter, node: ir.Node) -> Result:
    """Add up blocks [N, C * K, blocks] where they overlap in an image."""
    x, image, block = node.inputs
    kernel = ctx.static_ints(block, "block_shape") or []
    declared = declared_shape(node.outputs[0])
    sizes = [ctx.derived(d) for d in ctx.ints(image) or []] or [prim(d) for d in (declared or [])[2:]]
    if len(sizes) != len(kernel):
        raise Refused("image_shape is computed at run time")
    rank = len(kernel)
    strides = get_ints(node, "strides", [1] * rank) or []
    dilations = get_ints(node, "dilations", [1] * rank) or []
    pads = get_ints(node, "pads", [0] * 2 * rank) or []
    blocks = [
        tirx.floordiv(size + (before + after - dilation * (k - 1) - 1), prim(stride)) + 1
        for size, before, after, dilation, k, stride in zip(
            sizes, pads[:rank], pads[rank:], dilations, kernel, strides, strict=True
        )
    ]
    before_ = tuple(prim(p) for p in pads[:rank])
    spread = _Spread(tuple(blocks), tuple(sizes), tuple(kernel), tuple(strides), tuple(dilations), before_)
    taps = math.prod(kernel)

    def build(x_: te.Tensor) -> te.Tensor:
        axes = [te.reduce_axis((0, k), name=f"k{i}") for i, k in enumerate(kernel)]

        def total(n: tirx.Expr, c: tirx.Expr, *position: tirx.Expr) -> tirx.Expr:
            def column(source: Sequence[tirx.Expr], k: Sequence[tirx.IterVar]) -> tirx.Expr:
                tap = _flat([cast(t, "int64") for t in k], [prim(s) for s in kernel])
                return x_(n, c * taps + tap, _flat(source, blocks))

            return spread.total(position, axes, column, str(x_.dtype))

        channels = tirx.floordiv(x_.shape[1], prim(taps))
        return te.compute((x_.shape[0], channels, *sizes), total, name="col2im")

    return ctx.te(build, ctx.x(x))


@emits("DeformConv")
def deform_conv(ctx: Emitter, node: ir.Node) -> Result:
    """A convolution whose taps are moved by computed offsets, read between the pixels, and weighted by a mask."""
    x, w, offset, bias, mask = [*node.inputs, None, None][:5]
    out, per_group, *kernel = ctx.static_shape(w, "the kernel")
    if len(kernel) != 2:
        raise Refused(f"{len(kernel)} spatial axes")
    groups, offset_groups = get_int(node, "group", 1), get_int(node, "offset_group", 1)
    strides, dilations = get_ints(node, "strides", [1, 1]) or [], get_ints(node, "dilations", [1, 1]) or []
    before = (get_ints(node, "pads", [0] * 4) or [])[:2]
    batch, _, *outputs = ctx.shape(offset)
    rows = ctx.derived(batch * math.prod(outputs, start=prim(1)))
    taps, channels = math.prod(kernel), per_group * groups
    dtype = ctx.dtype(x)

    def build(x_NIC: te.Tensor, offset_: te.Tensor, *mask_: te.Tensor) -> te.Tensor:
        """Columns [G, N * O, K * C]: what each output pixel's taps read."""

        def element(g: tirx.Expr, row: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
            n, oy, ox = _unflat(row, outputs)
            tap, c = tirx.floordiv(column, prim(per_group)), g * per_group + tirx.floormod(column, prim(per_group))
            moved = tirx.floordiv(c, prim(channels // offset_groups)) * taps + tap
            steps = (tirx.floordiv(tap, prim(kernel[1])), tirx.floormod(tap, prim(kernel[1])))
            at = [
                cast(o * stride + k * dilation - pad, dtype) + offset_(n, moved * 2 + axis, oy, ox)
                for axis, (o, k, stride, dilation, pad) in enumerate(
                    zip((oy, ox), steps, strides, dilations, before, strict=True)
                )
            ]
            value = _between(x_NIC, n, at, c, dtype)
            return value * mask_[0](n, moved, oy, ox) if mask_ else value

        return te.compute((prim(groups), rows, prim(taps * per_group)), element, name="columns")

    operands = [ctx.x(v) for v in (offset, mask) if v is not None]
    columns = ctx.te(build, ctx.channels_last(x), *operands)
    per_out = out // groups
    ordered = _ordered_weight(ctx, w, (2, 3, 1, 0), [*kernel, per_group, out])
    grouped = relax.op.reshape(ordered, relax.ShapeExpr([prim(taps * per_group), prim(groups), prim(per_out)]))
    sums = product(ctx, columns, ctx.emit(relax.op.permute_dims(grouped, [1, 0, 2])), prim(per_out), None)

    def gather(sums_: te.Tensor, *bias_: te.Tensor) -> te.Tensor:
        def element(n: tirx.Expr, oy: tirx.Expr, ox: tirx.Expr, m: tirx.Expr) -> tirx.Expr:
            row = _flat([n, oy, ox], [batch, *outputs])
            value = sums_(tirx.floordiv(m, prim(per_out)), row, tirx.floormod(m, prim(per_out)))
            return value + bias_[0](m) if bias_ else value

        return te.compute((batch, *outputs, prim(out)), element, name="deform_conv")

    return ChannelsLast(ctx.te(gather, sums, *([ctx.x(bias)] if bias is not None else [])))


def _transposed(ctx: Emitter, node: ir.Node, sizes: Sequence[tirx.Expr], kernel: Sequence[int]) -> _Spread:
    """Output sizes and padding, by the formulas of the operator's specification."""
    rank = len(sizes)
    strides = get_ints(node, "strides", [1] * rank) or []
    dilations = get_ints(node, "dilations", [1] * rank) or []
    extra = get_ints(node, "output_padding", [0] * rank) or []
    pads = get_ints(node, "pads", [0] * 2 * rank) or []
    wanted = get_ints(node, "output_shape")
    auto_pad = get_str(node, "auto_pad", "NOTSET")
    outputs, before = [], []
    for i, size in enumerate(sizes):
        full = (size - 1) * strides[i] + (extra[i] + (kernel[i] - 1) * dilations[i] + 1)
        target = prim(wanted[-rank:][i]) if wanted else size * strides[i] if auto_pad.startswith("SAME") else None
        if target is None:
            padded = (pads[i], pads[rank + i]) if auto_pad == "NOTSET" else (0, 0)
            outputs.append(full - sum(padded))
            before.append(prim(padded[0]))
            continue
        total = tirx.max(full - target, prim(0))
        half = tirx.floordiv(total, prim(2))
        outputs.append(target)
        before.append(half if auto_pad == "SAME_UPPER" else total - half)
    made = tuple(ctx.derived(o) for o in outputs)
    return _Spread(tuple(sizes), made, tuple(kernel), tuple(strides), tuple(dilations), tuple(before))


def _by_group(ctx: Emitter, x: relax.Var, rows: tirx.Expr, groups: int, channels: int) -> relax.Var:
    """[N, I, G * C] as [G, N * I, C]."""
    if groups == 1:
        return ctx.emit(relax.op.reshape(x, relax.ShapeExpr([prim(1), rows, prim(channels)])))
    split = relax.op.reshape(x, relax.ShapeExpr([rows, prim(groups), prim(channels)]))
    return ctx.emit(relax.op.permute_dims(split, [1, 0, 2]))


def _times_kernel(ctx: Emitter, data: relax.Var, w: ir.Value | None, groups: int, columns: int) -> relax.Var:
    """[G, R, C] times the kernel [G * C, M, K] as columns [G, C, K * M]; a constant one is packed."""
    channels, _, *kernel = ctx.static_shape(w)
    depth = channels // groups
    if w is not None and ctx.is_weight(w) and ctx.dtype(w) in FLOATS:
        panels = Panels.of(ctx, ctx.dtype(w), static_int(data.ty.shape.values[1]), columns, depth)
        packed = ctx.weight(w, "spread_panels", [groups, *panels.shape], groups=groups, **panels.options)
        return product(ctx, data, packed, columns, panels)
    last = relax.op.permute_dims(ctx.x(w), [0, *range(2, len(kernel) + 2), 1])
    matrices = ctx.emit(relax.op.reshape(last, relax.ShapeExpr([prim(groups), prim(depth), prim(columns)])))
    return product(ctx, data, matrices, columns, None)


def _ordered_weight(ctx: Emitter, w: ir.Value | None, order: tuple[int, ...], shape: Sequence[int]) -> relax.Expr:
    if w is not None and ctx.is_weight(w):
        return ctx.weight(w, "transpose", shape, order=order)
    return relax.op.permute_dims(ctx.x(w), list(order))


def _between(x: te.Tensor, n: tirx.Expr, at: Sequence[tirx.Expr], channel: tirx.Expr, dtype: str) -> tirx.Expr:
    """Bilinear interpolation of x: [N, I, C]; zero outside."""
    one = tirx.const(1, dtype)
    total = tirx.const(0, dtype)
    for corner in itertools.product((0, 1), repeat=2):
        read, known, factor = [], [], one
        for p, size, side in zip(at, x.shape[1:3], corner, strict=True):
            low = tirx.floor(p)
            ratio = p - low
            factor = factor * (ratio if side else one - ratio)
            index = cast(low, "int64") + side
            known += [index >= 0, index < size]
            read.append(tirx.max(tirx.min(index, size - 1), prim(0)))
        total = total + tirx.Select(tirx.all(*known), factor, tirx.const(0, dtype)) * x(n, *read, channel)
    return total


def _flat(position: Sequence[tirx.Expr], sizes: Sequence[tirx.Expr]) -> tirx.Expr:
    place = prim(0)
    for p, size in zip(position, sizes, strict=True):
        place = place * size + p
    return place


def _unflat(row: tirx.Expr, outputs: Sequence[tirx.Expr]) -> tuple[tirx.Expr, tirx.Expr, tirx.Expr]:
    height, width = outputs
    return (
        tirx.floordiv(row, height * width),
        tirx.floormod(tirx.floordiv(row, width), height),
        tirx.floormod(row, width),
    )
