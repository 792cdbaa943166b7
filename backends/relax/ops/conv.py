"""Conv, on channels-last data.

Letters: N images, [H, W] in, [OH, OW] out, [KH, KW] the window, G groups of C input and O output channels. A convolution over one axis is
one over two with H = KH = 1. A 1x1 convolution of every pixel is a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int, get_ints, get_str
from backends.relax.contraction import FLOATS, product
from backends.relax.emitter import Emitter
from backends.relax.registry import emits
from backends.relax.values import ChannelsLast, Refused, Result, prim, static_int


@dataclass(frozen=True)
class Window:
    """Strides, dilations and pads of the spatial axes."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    def out(self, axis: int, size: int | tirx.Expr) -> tirx.Expr:
        """The output size along a spatial axis."""
        reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
        span = prim(size) + (self.begins[axis] + self.ends[axis] - reach)
        exact = static_int(span)
        return prim(exact // self.strides[axis] + 1) if exact is not None else tirx.floordiv(span, self.strides[axis]) + 1


@emits("Conv")
def conv(ctx: Emitter, node: ir.Node) -> Result:
    """[N, G*C, H, W] with weights [G*O, C, KH, KW] and an optional bias [G*O]."""
    x, w = node.inputs[0], node.inputs[1]
    if w is None or ctx.dtype(x) not in FLOATS:
        raise Refused(f"a convolution of {ctx.dtype(x)}")
    weights = ctx.static_shape(w, "the weights' shape")
    spatial = len(weights) - 2
    groups = get_int(node, "group", 1)
    window = window_of(node, weights[2:], ctx.shape(x)[2:])
    data = ctx.channels_last(x)
    if spatial == 1:
        data = ctx.emit(relax.op.expand_dims(data, [1]))
        window = _with_height_one(window)
    if spatial > 2 or not ctx.is_weight(w):
        result = _general(ctx, data, w, groups, window)
    elif groups == weights[0] and weights[1] == 1:
        result = _depthwise(ctx, data, w, window)
    elif groups == 1 and _is_pointwise(window):
        result = _pointwise(ctx, data, w, weights)
    else:
        result = _direct(ctx, data, w, weights, groups, window)
    if spatial == 1:
        result = ctx.emit(relax.op.squeeze(result, [1]))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return ChannelsLast(result if bias is None else relax.op.add(result, ctx.x(bias)))


def window_of(node: ir.Node, kernel: list[int], sizes: list[tirx.Expr]) -> Window:
    """The attributes of a convolution or pool, with `auto_pad` worked out.

    Raises:
        Refused: `auto_pad` of a symbolic size.
    """
    rank = len(kernel)
    strides = get_ints(node, "strides", [1] * rank) or []
    dilations = get_ints(node, "dilations", [1] * rank) or []
    pads = get_ints(node, "pads", [0] * 2 * rank) or []
    mode = get_str(node, "auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * 2 * rank
        for a in range(rank):
            size = static_int(sizes[a])
            if size is None:
                raise Refused("auto_pad of a symbolic size")
            reach = dilations[a] * (kernel[a] - 1) + 1
            total = max(0, (-(-size // strides[a]) - 1) * strides[a] + reach - size)
            small, large = total // 2, total - total // 2
            pads[a], pads[a + rank] = (small, large) if mode == "SAME_UPPER" else (large, small)
    elif mode == "VALID":
        pads = [0] * 2 * rank
    return Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(pads[:rank]), tuple(pads[rank:]))


def _with_height_one(window: Window) -> Window:
    return Window((1, *window.kernel), (1, *window.strides), (1, *window.dilations), (0, *window.begins), (0, *window.ends))


def _is_pointwise(window: Window) -> bool:
    return all(k == 1 for k in window.kernel + window.strides) and not any(window.begins + window.ends)


def _pointwise(ctx: Emitter, data: relax.Var, w: ir.Value, weights: list[int]) -> relax.Var:
    """Every pixel a row of a matrix."""
    sizes = [static_int(d) for d in data.ty.shape.values[:-1]]
    rows = 1
    for size in sizes:
        rows = 0 if size is None else rows * size
    out, depth = weights[:2]
    width = ctx.tiles.panel_width(rows or None, out, depth)
    weight = ctx.weight(w, "conv_matrix", [-(-out // width), depth, width], width=width)
    return product(ctx, data, weight, out, width)


def _padded_width(ctx: Emitter, data: relax.Var, window: Window) -> tuple[relax.Var, Window]:
    """Pad explicitly along W where its size is symbolic: the schedule's edge tiles need it to be known."""
    if static_int(data.ty.shape.values[2]) is not None or not (window.begins[1] or window.ends[1]):
        return data, window
    padded = ctx.emit(relax.op.nn.pad(data, [0, 0, 0, 0, window.begins[1], window.ends[1], 0, 0]))
    return padded, Window(window.kernel, window.strides, window.dilations, (window.begins[0], 0), (window.ends[0], 0))


def _direct(ctx: Emitter, data: relax.Var, w: ir.Value, weights: list[int], groups: int, window: Window) -> relax.Var:
    data, window = _padded_width(ctx, data, window)
    out, c = weights[0] // groups, weights[1]
    kh, kw = window.kernel
    n, h, width_in, _ = data.ty.shape.values
    ow = window.out(1, width_in)
    width = ctx.tiles.panel_width(static_int(ow), out, kh * kw * c)
    panels = -(-out // width)
    weight = ctx.weight(w, "conv_panels", [groups, panels, kh, kw * c, width], groups=groups, width=width)
    sh, sw = window.strides
    dh, dw = window.dilations
    ph, pw = window.begins

    def build(x: te.Tensor, f: te.Tensor) -> te.Tensor:
        ry = te.reduce_axis((0, kh), "ry")
        rx = te.reduce_axis((0, kw * c), "rx")

        def element(i: tirx.Expr, y: tirx.Expr, col: tirx.Expr, o: tirx.Expr) -> tirx.Expr:
            g, own = tirx.floordiv(o, out), tirx.floormod(o, out)
            iy = y * sh + ry * dh - ph
            ix = col * sw + tirx.floordiv(rx, c) * dw - pw
            inside = tirx.all(iy >= 0, iy < h, ix >= 0, ix < width_in)
            value = x[i, iy, ix, g * c + tirx.floormod(rx, c)]
            if any(window.begins + window.ends):
                value = tirx.if_then_else(inside, value, tirx.const(0, str(x.dtype)))
            return te.sum(value * f[g, tirx.floordiv(own, width), ry, rx, tirx.floormod(own, width)], axis=[ry, rx])

        attrs = {"tersor.kernel": "conv2d", "tersor.window": [kh, kw, sh, sw, dh, dw, ph, pw], "tersor.groups": groups}
        return te.compute((n, window.out(0, h), ow, groups * out), element, name="conv2d", attrs=attrs)

    return ctx.te(build, data, weight, primfunc_name_hint="conv2d")


def _depthwise(ctx: Emitter, data: relax.Var, w: ir.Value, window: Window) -> relax.Var:
    data, window = _padded_width(ctx, data, window)
    (kh, kw), (sh, sw), (dh, dw), (ph, pw) = window.kernel, window.strides, window.dilations, window.begins
    n, h, width_in, c = data.ty.shape.values
    shape = ctx.static_shape(w)
    flat = ctx.weight(w, "depthwise", [*shape[2:], shape[0]])
    weight = ctx.emit(relax.op.reshape(flat, relax.ShapeExpr([prim(kh), prim(kw), prim(c)]))) if len(shape) == 3 else flat

    def build(x: te.Tensor, f: te.Tensor) -> te.Tensor:
        ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")

        def element(i: tirx.Expr, y: tirx.Expr, col: tirx.Expr, o: tirx.Expr) -> tirx.Expr:
            iy, ix = y * sh + ry * dh - ph, col * sw + rx * dw - pw
            value = x[i, iy, ix, o]
            if any(window.begins + window.ends):
                inside = tirx.all(iy >= 0, iy < h, ix >= 0, ix < width_in)
                value = tirx.if_then_else(inside, value, tirx.const(0, str(x.dtype)))
            return te.sum(value * f[ry, rx, o], axis=[ry, rx])

        attrs = {"tersor.kernel": "depthwise", "tersor.window": [kh, kw, sh, sw, dh, dw, ph, pw]}
        return te.compute((n, window.out(0, h), window.out(1, width_in), c), element, name="depthwise", attrs=attrs)

    return ctx.te(build, data, weight, primfunc_name_hint="depthwise")


def _general(ctx: Emitter, data: relax.Var, w: ir.Value, groups: int, window: Window) -> relax.Var:
    """Any number of spatial axes, weights computed at run time: one tensor expression, vectorised over the output channels."""
    rank = len(window.kernel)
    weights = ctx.static_shape(w)
    out, c = weights[0] // groups, weights[1]
    plain = ctx.x(w)
    if len(weights) == rank + 1:
        plain = ctx.emit(relax.op.expand_dims(plain, [2]))
    f = ctx.emit(relax.op.permute_dims(plain, [*range(2, rank + 2), 1, 0]))
    sizes = list(data.ty.shape.values)
    pads = [0, 0, *(p for pair in zip(window.begins, window.ends, strict=True) for p in pair), 0, 0]
    padded = ctx.emit(relax.op.nn.pad(data, pads)) if any(pads) else data

    def build(x: te.Tensor, f: te.Tensor) -> te.Tensor:
        taps = [te.reduce_axis((0, k), f"r{a}") for a, k in enumerate(window.kernel)]
        rc = te.reduce_axis((0, c), "rc")

        def element(*index: tirx.Expr) -> tirx.Expr:
            i, *place, o = index
            at = [p * s + t * d for p, s, t, d in zip(place, window.strides, taps, window.dilations, strict=True)]
            channel = tirx.floordiv(o, out) * c + rc if groups > 1 else rc
            return te.sum(x[(i, *at, channel)] * f[(*taps, rc, o)], axis=[*taps, rc])

        spatial = [window.out(a, sizes[a + 1]) for a in range(rank)]
        return te.compute((sizes[0], *spatial, groups * out), element, name="conv")

    return ctx.te(build, padded, f, primfunc_name_hint="conv")
