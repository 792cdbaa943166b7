"""Conv, on channels-last data.

Letters: N images, [H, W] in, [OH, OW] out, [KH, KW] the window, G groups of C input and O output channels. A
convolution over one axis is
one over two with H = KH = 1. A 1x1 convolution of every pixel is a matrix product.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int, get_str
from backends.relax.byte_products import rescaled
from backends.relax.checks import require, require_at_least
from backends.relax.contraction import FLOATS, Panels, product
from backends.relax.emitter import Emitter
from backends.relax.filters import Filters, byte_factors, stored_image
from backends.relax.forms import is_known
from backends.relax.quantized import RunTimeZero
from backends.relax.registry import emits
from backends.relax.scalars import cast
from backends.relax.values import ChannelsLast, ConvShape, Refused, Result, prim, static_int
from backends.relax.window import Window, pad_channels_last
from backends.relax.winograd import OUT, PATCH, TAPS

_WIDEST_AT_AN_EDGE = 16


@emits("Conv")
def conv(ctx: Emitter, node: ir.Node) -> Result:
    """[N, G*C, H, W] with weights [G*O, C, KH, KW] and an optional bias [G*O]."""
    x, w = node.inputs[0], node.inputs[1]
    if w is None or ctx.dtype(x) not in FLOATS:
        raise Refused(f"a convolution of {ctx.dtype(x)}")
    quantized = byte_factors(ctx, x, w)
    filters = Filters(w) if quantized is None else Filters(quantized[1].value, quantized[1].options)
    x, w = (x if quantized is None else quantized[0].value), filters.value
    weights = ctx.static_shape(w, "the weights' shape")
    spatial = len(weights) - 2
    groups = get_int(node, "group", 1)
    window = Window.of(node, ctx.shape(x)[2:], weights[2:], ctx.derived)
    require(ctx, ctx.shape(x)[1], weights[1] * groups, "channels of the input and of the weight")
    require_at_least(ctx, 0, window.outputs, "the number of windows")
    absorbed = _absorbed_padding(ctx, x)
    if absorbed is not None:
        x, before, after = absorbed
        window = replace(
            window,
            sizes=tuple(ctx.shape(x)[2:]),
            before=tuple(own + more for own, more in zip(window.before, before, strict=True)),
            after=tuple(own + more for own, more in zip(window.after, after, strict=True)),
        )
    data = ctx.channels_last(x)
    if spatial == 1:
        data = ctx.emit(relax.op.expand_dims(data, [1]))
        window = with_height_one(window)
    if quantized is not None:
        data, window = as_stored(ctx, data, window, weights, groups, quantized[0].zero)
    if spatial > 2 or not ctx.is_weight(w):
        result = _general(ctx, data, w, groups, window)
    else:
        result = by_rule(ctx, data, filters, weights, groups, window)
    if spatial == 1:
        result = ctx.emit(relax.op.squeeze(result, [1]))
    if quantized is not None:
        result = rescaled(ctx, result, *quantized, weights[0], 0)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return ChannelsLast(result if bias is None else relax.op.add(result, ctx.x(bias)))


def as_stored(
    ctx: Emitter, data: relax.Var, window: Window, weights: list[int], groups: int, zero: int | RunTimeZero
) -> tuple[relax.Var, Window]:
    """An image of bytes as the rules take it; see `stored_image`."""
    if groups == 1 and _is_pointwise(window):
        return data, window
    together = ctx.tiles.together("uint8") if groups == 1 else 1
    return stored_image(ctx, data, window, zero, together=together)


def by_rule(
    ctx: Emitter, data: relax.Var, filters: Filters, weights: list[int], groups: int, window: Window
) -> relax.Var:
    """One or two spatial axes and constant weights: the form for which there is the best rule.

    Args:
        ctx: the emitter.
        data: [N, H, W, G*C]: floats, or bytes (`as_stored`).
        filters: the weights.
        weights: their shape, [G*O, C, taps...].
        groups: G.
        window: over H and W.

    Returns:
        [N, OH, OW, G*O]; of bytes the sums of products, int32.
    """
    if groups == weights[0] and weights[1] == 1:
        return _depthwise(ctx, data, filters, window)
    if groups == 1 and _is_pointwise(window):
        return _pointwise(ctx, data, filters, weights)
    floats = filters.bytewise is None
    if floats and (width := _winograd_width(ctx, data, filters.value, groups, window)) is not None:
        return _winograd(ctx, data, filters.value, width, window)
    return _direct(ctx, data, filters, weights, groups, window)


def _absorbed_padding(ctx: Emitter, x: ir.Value | None) -> tuple[ir.Value, list[int], list[int]] | None:
    """What a Pad with zeros before the convolution pads, and how much an axis: the convolution's own padding is free.

    `None` if there is none, or none that a convolution can do.
    """
    pad = None if x is None else x.producer()
    if pad is None or pad.op_type != "Pad" or pad.domain not in ("", "ai.onnx"):
        return None
    source, pads, value, axes = (*pad.inputs, None, None)[:4]
    if source is None or not is_known(ctx, source) or get_str(pad, "mode", "constant") != "constant":
        return None
    amounts, constant = ctx.constant(pads), ctx.constant(value)
    if amounts is None or (value is not None and (constant is None or constant.any())):
        return None
    rank = ctx.rank(source)
    chosen = list(range(rank)) if axes is None else ctx.static_ints(axes, "axes") or []
    before, after = [0] * rank, [0] * rank
    for axis, low, high in zip(chosen, amounts[: len(chosen)], amounts[len(chosen) :], strict=True):
        before[ctx.axis(axis, rank)], after[ctx.axis(axis, rank)] = int(low), int(high)
    if any(before[:2] + after[:2]) or min(before + after) < 0:
        return None
    return source, before[2:], after[2:]


def with_height_one(window: Window) -> Window:
    """A window over one axis as one over two, the first of size one."""
    zero, one = (prim(0),), (prim(1),)
    return Window(
        one + window.sizes,
        (1, *window.kernel),
        (1, *window.strides),
        (1, *window.dilations),
        zero + window.before,
        zero + window.after,
        one + window.outputs,
    )


def _is_pointwise(window: Window) -> bool:
    return all(k == 1 for k in window.kernel + window.strides) and window.inside()


def _pointwise(ctx: Emitter, data: relax.Var, filters: Filters, weights: list[int]) -> relax.Var:
    """Every pixel a row of a matrix."""
    sizes = [static_int(d) for d in data.ty.shape.values[:-1]]
    rows = 1
    for size in sizes:
        rows = 0 if size is None else rows * size
    out, depth = weights[:2]
    panels = Panels.of(ctx, str(data.ty.dtype), rows or None, out, depth)
    weight = filters.packed(ctx, "conv_matrix", panels.shape, **panels.options)
    return product(ctx, data, weight, out, panels)


def _padded(ctx: Emitter, data: relax.Var, window: Window) -> tuple[relax.Var, Window]:
    """The data, and the window over it: what a kernel does not know of the padding is stored around the image.

    The schedule's edge tiles need to know the pads in front, and behind where they do not know the width. They are
    written out tap by tap: of a wide window that is more code than it is worth.
    """
    known = all(static_int(b) is not None for b in window.before) and window.kernel[-1] <= _WIDEST_AT_AN_EDGE
    if known and (static_int(window.sizes[1]) is not None or static_int(window.after[1]) is not None):
        return data, window
    zeros = (prim(0),) * len(window.sizes)
    stored = replace(window, sizes=window.padded(), before=zeros, after=zeros)
    return (data if window.inside() else _stored_padding(ctx, data, window)), stored


def _annotated(window: Window) -> list[int]:
    """What the schedule has to know of a window (`Taps`)."""
    pads = [static_int(pad) or 0 for pad in (*window.before, window.after[1])]
    return [*window.kernel, *window.strides, *window.dilations, *pads]


def _stored_padding(ctx: Emitter, data: relax.Var, window: Window) -> relax.Var:
    zero = tirx.const(0, str(data.ty.dtype))
    return ctx.te(lambda x: pad_channels_last(x, window, zero), data, primfunc_name_hint="pad")


def _direct(
    ctx: Emitter, data: relax.Var, filters: Filters, weights: list[int], groups: int, window: Window
) -> relax.Var:
    data, window = _padded(ctx, data, window)
    ph, pw = (static_int(before) or 0 for before in window.before)
    out, c = weights[0] // groups, weights[1]
    if groups == 1:
        data, window = stored_image(ctx, data, window, 0, together=ctx.tiles.together(str(data.ty.dtype)))
        c = static_int(data.ty.shape.values[3]) or c
    kh, kw = window.kernel
    oh, ow = window.outputs
    panels = Panels.of(ctx, str(data.ty.dtype), static_int(ow), out, c, taps=kh * kw)
    count, steps, length = panels.shape
    shape = [groups, count, kh, kw * steps, length]
    weight = filters.packed(ctx, "conv_panels", shape, groups=groups, **panels.options)
    total = _sums(data)
    sh, sw = window.strides
    dh, dw = window.dilations
    inside_always = window.inside()

    def build(x: te.Tensor, f: te.Tensor) -> te.Tensor:
        n, h, width_in, _ = x.shape
        ry = te.reduce_axis((0, kh), "ry")
        rx = te.reduce_axis((0, kw * c), "rx")

        def element(i: tirx.Expr, y: tirx.Expr, col: tirx.Expr, o: tirx.Expr) -> tirx.Expr:
            g, own = tirx.floordiv(o, out), tirx.floormod(o, out)
            iy = y * sh + ry * dh - ph
            ix = col * sw + tirx.floordiv(rx, c) * dw - pw
            inside = tirx.all(iy >= 0, iy < h, ix >= 0, ix < width_in)
            value = x[i, iy, ix, g * c + tirx.floormod(rx, c)]
            if not inside_always:
                value = tirx.if_then_else(inside, value, tirx.const(0, str(x.dtype)))
            panel, step, place = panels.at(tirx.floormod(rx, c), own)
            factor = f[g, panel, ry, tirx.floordiv(rx, c) * steps + step, place]
            return te.sum(cast(value, total) * cast(factor, total), axis=[ry, rx])

        attrs = {"tersor.kernel": "conv2d", "tersor.window": _annotated(window), "tersor.groups": groups}
        return te.compute((n, oh, ow, groups * out), element, name="conv2d", attrs=attrs)

    return ctx.te(build, data, weight, primfunc_name_hint="conv2d")


def _winograd_width(ctx: Emitter, data: relax.Var, w: ir.Value, groups: int, window: Window) -> int | None:
    """The panel width if the convolution is one that Winograd's method does, and faster; else `None`."""
    dtype = str(data.ty.dtype)
    pads = [static_int(v) for v in window.before]
    plain = window.kernel == (TAPS, TAPS) and window.strides == window.dilations == (1, 1)
    if not plain or groups != 1 or dtype not in ("float32", "bfloat16") or any(pad is None for pad in pads):
        return None
    height, width = map(static_int, window.outputs)
    out, c = ctx.static_shape(w)[:2]
    images = static_int(data.ty.shape.values[0])
    return ctx.tiles.winograd_width(ConvShape(images, height, width, c, out, dtype))


def _winograd(ctx: Emitter, data: relax.Var, w: ir.Value, width: int, window: Window) -> relax.Var:
    """3 x 3 taps by Winograd's method (see `backends.relax.winograd`), in float32 also where the data is bfloat16.

    Letters: i, j a point of the transformed patch; p, q a place in the patch itself. The formula says what is read and
    summed over. The entries of the two matrices are left to the rule, which no target may lack that asks for this form:
    written out, they are a hundred conditions in every pass over the kernel.
    """
    out, c = ctx.static_shape(w)[:2]
    dtype = str(data.ty.dtype)
    shape = [-(-out // width), PATCH, PATCH, c, width]
    weight = ctx.weight(w, "winograd_panels", shape, "float32", width=width)
    ph, pw = (static_int(before) or 0 for before in window.before)

    def build(x: te.Tensor, f: te.Tensor) -> te.Tensor:
        n, h, width_in, _ = x.shape
        i, j, p, q = (te.reduce_axis((prim(0), prim(PATCH)), name) for name in "ijpq")
        rc = te.reduce_axis((0, c), "rc")

        def element(image: tirx.Expr, y: tirx.Expr, col: tirx.Expr, o: tirx.Expr) -> tirx.Expr:
            iy = tirx.floordiv(y, OUT) * OUT + p - ph
            ix = tirx.floordiv(col, OUT) * OUT + q - pw
            inside = tirx.all(iy >= 0, iy < h, ix >= 0, ix < width_in)
            value = tirx.if_then_else(inside, x[image, iy, ix, rc], tirx.const(0, dtype))
            factor = f[tirx.floordiv(o, width), i, j, rc, tirx.floormod(o, width)]
            return te.sum(value * cast(factor, dtype), axis=[i, j, p, q, rc])

        attrs = {"tersor.kernel": "winograd", "tersor.pads": [ph, pw]}
        return te.compute((n, *window.outputs, out), element, name="winograd", attrs=attrs)

    return ctx.te(build, data, weight, primfunc_name_hint="winograd")


def _sums(data: relax.Var) -> str:
    """The type in which products are added up."""
    dtype = str(data.ty.dtype)
    return "int32" if dtype == "uint8" else dtype


def _depthwise(ctx: Emitter, data: relax.Var, filters: Filters, window: Window) -> relax.Var:
    data, window = _padded(ctx, data, window)
    ph, pw = (static_int(before) or 0 for before in window.before)
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.strides, window.dilations
    inside_always = window.inside()
    c = data.ty.shape.values[3]
    shape = ctx.static_shape(filters.value)
    flat = filters.packed(ctx, "depthwise", [*shape[2:], shape[0]])
    total = _sums(data)
    weight = (
        ctx.emit(relax.op.reshape(flat, relax.ShapeExpr([prim(kh), prim(kw), prim(c)]))) if len(shape) == 3 else flat
    )

    def build(x: te.Tensor, f: te.Tensor) -> te.Tensor:
        n, h, width_in, _ = x.shape
        ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")

        def element(i: tirx.Expr, y: tirx.Expr, col: tirx.Expr, o: tirx.Expr) -> tirx.Expr:
            iy, ix = y * sh + ry * dh - ph, col * sw + rx * dw - pw
            value = x[i, iy, ix, o]
            if not inside_always:
                inside = tirx.all(iy >= 0, iy < h, ix >= 0, ix < width_in)
                value = tirx.if_then_else(inside, value, tirx.const(0, str(x.dtype)))
            return te.sum(cast(value, total) * f[ry, rx, o], axis=[ry, rx])

        attrs = {"tersor.kernel": "depthwise", "tersor.window": _annotated(window)}
        return te.compute((n, *window.outputs, c), element, name="depthwise", attrs=attrs)

    return ctx.te(build, data, weight, primfunc_name_hint="depthwise")


def _general(ctx: Emitter, data: relax.Var, w: ir.Value, groups: int, window: Window) -> relax.Var:
    """Any number of spatial axes, weights computed at run time; vectorised over the output channels."""
    rank = len(window.kernel)
    weights = ctx.static_shape(w)
    out, c = weights[0] // groups, weights[1]
    plain = ctx.x(w)
    if len(weights) == rank + 1:
        plain = ctx.emit(relax.op.expand_dims(plain, [2]))
    f = ctx.emit(relax.op.permute_dims(plain, [*range(2, rank + 2), 1, 0]))
    padded = data if window.inside() else _stored_padding(ctx, data, window)

    def build(x: te.Tensor, f: te.Tensor) -> te.Tensor:
        taps = [te.reduce_axis((0, k), f"r{a}") for a, k in enumerate(window.kernel)]
        rc = te.reduce_axis((0, c), "rc")

        def element(*index: tirx.Expr) -> tirx.Expr:
            i, *place, o = index
            at = [p * s + t * d for p, s, t, d in zip(place, window.strides, taps, window.dilations, strict=True)]
            channel = tirx.floordiv(o, out) * c + rc if groups > 1 else rc
            return te.sum(x[(i, *at, channel)] * f[(*taps, rc, o)], axis=[*taps, rc])

        return te.compute((x.shape[0], *window.outputs, groups * out), element, name="conv")

    return ctx.te(build, padded, f, primfunc_name_hint="conv")
