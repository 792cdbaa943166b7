"""Resize: interpolation along some axes, to sizes or by scales.

For each resized axis a table says which input elements an output element is made of: their first index, and their
weights. Tables are computed in double precision, as an index must not depend on a rounding error; they are short.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import onnx_ir as ir
from tvm import relax, sym, te, tirx

from backends.relax.attributes import declared_shape, get_float, get_int, get_ints, get_str
from backends.relax.emitter import Emitter
from backends.relax.interpolation import NEIGHBOURS, weight
from backends.relax.registry import emits
from backends.relax.scalars import cast, wider
from backends.relax.stages import table
from backends.relax.values import ChannelsLast, Refused, Result, prim, static_int

_F64 = "float64"
_UNROLLED_TAPS = 16
"""So many neighbours are written out; more of them become a loop."""

Load = Callable[[int], tirx.Expr]
"""Gives an element of a small tensor, as a double."""


@dataclass(frozen=True)
class _Axis:
    """One resized axis: its place, its size before and after, and its number among the node's axes."""

    place: int
    size: tirx.Expr
    output: tirx.Expr
    number: int


@dataclass(frozen=True)
class _Options:
    """The attributes of a Resize."""

    mode: str
    nearest: str
    coordinates: str
    policy: str
    antialias: bool
    exclude_outside: bool
    cubic_a: float
    extrapolation: float

    @classmethod
    def of(cls, node: ir.Node) -> _Options:
        return cls(
            mode=get_str(node, "mode", "nearest"),
            nearest=get_str(node, "nearest_mode", "round_prefer_floor"),
            coordinates=get_str(node, "coordinate_transformation_mode", "half_pixel"),
            policy=get_str(node, "keep_aspect_ratio_policy", "stretch"),
            antialias=get_int(node, "antialias", 0) == 1,
            exclude_outside=get_int(node, "exclude_outside", 0) == 1,
            cubic_a=get_float(node, "cubic_coeff_a", -0.75),
            extrapolation=get_float(node, "extrapolation_value", 0.0),
        )


@dataclass
class _Operands:
    """Tensors that the kernel reads besides the data: what of scales, sizes, regions is computed at run time."""

    tensors: list[relax.Expr] = field(default_factory=list)

    def load(self, ctx: Emitter, value: ir.Value | None) -> Callable[[Sequence[te.Tensor]], Load] | None:
        """How a kernel reads the elements of a small input, or `None` where it is absent."""
        if value is None or static_int(ctx.shape(value)[0]) == 0:
            return None
        known = ctx.constant(value)
        if known is not None:
            numbers = [float(v) for v in known.reshape(-1)]
            return lambda _: lambda k: tirx.const(numbers[k], _F64)
        elements = ctx.ints(value)
        if elements is not None:
            return lambda _: lambda k: tirx.Cast(_F64, elements[k])
        slot = len(self.tensors)
        self.tensors.append(ctx.x(value))
        return lambda tensors: lambda k: cast(tensors[slot](prim(k)), _F64)


@emits("Resize")
def resize(ctx: Emitter, node: ir.Node) -> Result:
    """Interpolate some axes to another size."""
    x, roi, scales, sizes = [*node.inputs, None, None, None][:4]
    options = _Options.of(node)
    operands = _Operands()
    by_sizes = sizes is not None and static_int(ctx.shape(sizes)[0]) != 0
    given = operands.load(ctx, sizes if by_sizes else scales)
    region = operands.load(ctx, roi) if options.coordinates == "tf_crop_and_resize" else None
    if given is None:
        raise Refused("neither scales nor sizes are given")
    every = _axes(ctx, node, sizes if by_sizes else scales, by_sizes=by_sizes)
    axes = [a for a in every if not _unchanged(ctx, a, options, None if by_sizes else scales)]
    if not axes:
        return ctx.x(x)
    count = len(get_ints(node, "axes") or ctx.shape(x))
    last = ctx.rank(x) > 2 and all(a.place > 1 for a in axes)
    placed = [a.place - 1 if last else a.place for a in axes]

    def build(x_: te.Tensor, *tensors: te.Tensor) -> te.Tensor:
        load = given(tensors)
        tables = [
            _table(a, _scale(a, every, load, options, by_sizes=by_sizes), region and region(tensors), count, options)
            for a in axes
        ]
        return _interpolated(x_, placed, axes, tables, options)

    data = ctx.channels_last(x) if last else ctx.x(x)
    y = ctx.te(build, data, *operands.tensors)
    return ChannelsLast(y) if last else y


@dataclass(frozen=True)
class _Table:
    """Of one axis: the first neighbour's index [O], their weights [O, taps] or `None`, what lies outside [O]."""

    first: te.Tensor
    weights: te.Tensor | None
    taps: int
    outside: te.Tensor | None


def _axes(ctx: Emitter, node: ir.Node, given: ir.Value | None, *, by_sizes: bool) -> list[_Axis]:
    """The node's axes, with their sizes after."""
    sizes = ctx.shape(node.inputs[0])
    axes = [ctx.axis(a, len(sizes)) for a in get_ints(node, "axes", range(len(sizes))) or []]
    outputs = _output_sizes(ctx, node, [sizes[a] for a in axes], given, by_sizes=by_sizes)
    if outputs is None:
        declared = declared_shape(node.outputs[0])
        if declared is None:
            raise Refused("the size of the result is computed at run time")
        outputs = [prim(declared[a]) for a in axes]
    return [_Axis(a, sizes[a], ctx.derived(o), k) for k, (a, o) in enumerate(zip(axes, outputs, strict=True))]


def _unchanged(ctx: Emitter, axis: _Axis, options: _Options, scales: ir.Value | None) -> bool:
    """Whether an axis keeps its elements; a scale that is not 1, or a region, moves them even within the same size."""
    if options.coordinates == "tf_crop_and_resize":
        return axis.place < 2 and static_int(axis.size) is not None and static_int(axis.size) == static_int(axis.output)
    if scales is not None:
        known = ctx.constant(scales)
        return known is not None and float(known[axis.number]) == 1.0
    same = sym.Analyzer().can_prove_equal(axis.size, axis.output)
    return bool(same) and (options.policy == "stretch")


def _output_sizes(
    ctx: Emitter, node: ir.Node, sizes: Sequence[tirx.Expr], given: ir.Value | None, *, by_sizes: bool
) -> list[tirx.Expr] | None:
    """The sizes of the axes after, where they are known at compile time."""
    if not by_sizes:
        scales = ctx.constant(given)
        return None if scales is None else [_scaled(d, float(s)) for d, s in zip(sizes, scales, strict=True)]
    wanted = ctx.ints(given)
    policy = get_str(node, "keep_aspect_ratio_policy", "stretch")
    if wanted is None or policy == "stretch":
        return wanted
    ratios = [Fraction(w, d) for d, w in zip(map(static_int, sizes), map(static_int, wanted), strict=True) if d and w]
    if len(ratios) < len(sizes):
        raise Refused(f"keep_aspect_ratio_policy {policy!r} with a symbolic size")
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [prim(math.floor(ratio * (static_int(d) or 0) + Fraction(1, 2))) for d in sizes]


def _scaled(size: tirx.Expr, scale: float) -> tirx.Expr:
    known = static_int(size)
    if known is not None:
        return prim(int(known * scale))
    ratio = Fraction(scale)
    if ratio.denominator > 1024:
        raise Refused(f"scale {scale} of a symbolic size")
    return tirx.floordiv(size * ratio.numerator, prim(ratio.denominator))


def _scale(axis: _Axis, axes: Sequence[_Axis], load: Load, options: _Options, *, by_sizes: bool) -> tirx.Expr:
    if not by_sizes:
        return load(axis.number)
    if options.policy == "stretch":
        before, after = static_int(axis.size), static_int(axis.output)
        if before and after:
            return tirx.const(after / before, _F64)
        return cast(axis.output, _F64) / cast(axis.size, _F64)
    ratios = [load(a.number) / cast(a.size, _F64) for a in axes]
    pick = tirx.min if options.policy == "not_larger" else tirx.max
    chosen = ratios[0]
    for ratio in ratios[1:]:
        chosen = pick(chosen, ratio)
    return chosen


def _coordinate(
    o: tirx.Expr, axis: _Axis, scale: tirx.Expr, region: tuple[tirx.Expr, tirx.Expr] | None, options: _Options
) -> tirx.Expr:
    """Where the output element `o` lies on the input's axis."""
    x, size = cast(o, _F64), cast(axis.size, _F64)
    half, one = tirx.const(0.5, _F64), tirx.const(1, _F64)
    length = scale * size
    mode = options.coordinates
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return tirx.Select(tirx.EQ(length, one), tirx.const(0, _F64), x * (size - one) / _intervals(length))
    if mode == "tf_crop_and_resize":
        if region is None:
            raise Refused("tf_crop_and_resize without a region")
        start, end = region
        extent = (end - start) * (size - one)
        moved = tirx.Select(tirx.EQ(length, one), extent * half, x * extent / _intervals(length))
        return moved + start * (size - one)
    centred = (x + half) / scale - half
    if mode == "pytorch_half_pixel":
        return tirx.Select(tirx.EQ(length, one), -half, centred)
    if mode == "half_pixel_symmetric":
        return size * half * (one - cast(axis.output, _F64) / length) + centred
    if mode != "half_pixel":
        raise Refused(f"coordinate_transformation_mode {mode!r}")
    return centred


def _intervals(length: tirx.Expr) -> tirx.Expr:
    """One less than the length, where it is not 1."""
    one = tirx.const(1, _F64)
    return tirx.Select(tirx.EQ(length, one), one, length - one)


def _table(axis: _Axis, scale: tirx.Expr, region: Load | None, count: int, options: _Options) -> _Table:
    ends = None if region is None else (region(axis.number), region(count + axis.number))
    at = table((axis.output,), lambda o: _coordinate(o, axis, scale, ends, options), "coordinate")
    limit = cast(axis.size - 1, _F64)
    outside = None
    if options.coordinates == "tf_crop_and_resize":
        outside = table(at.shape, lambda o: tirx.any(at(o) < tirx.const(0, _F64), at(o) > limit), "outside")
    if options.mode == "nearest":
        return _Table(table(at.shape, lambda o: _nearest(at(o), options), "nearest"), None, 1, outside)
    shrink = _shrinking(scale) if options.antialias else 1.0
    begin, taps = NEIGHBOURS[options.mode]
    if options.antialias:
        begin = math.floor(-taps / 2 / shrink) + 1
        taps = 2 - 2 * begin
    first = table(at.shape, lambda o: cast(tirx.floor(at(o)), "int64") + begin, "first")

    def raw(o: tirx.Expr, k: tirx.Expr) -> tirx.Expr:
        index = first(o) + k
        value = weight(options.mode, (cast(index, _F64) - at(o)) * tirx.const(shrink, _F64), options.cubic_a)
        if not options.exclude_outside:
            return value
        return tirx.Select(tirx.all(index >= 0, index < axis.size), value, tirx.const(0, _F64))

    weights = table((axis.output, taps), raw, "weights")
    if options.antialias or options.exclude_outside:
        k = te.reduce_axis((0, taps), name="k")
        raw_weights = weights
        total = te.compute(at.shape, lambda o: te.sum(raw_weights(o, k), axis=k), name="total")
        weights = table(raw_weights.shape, lambda o, k: raw_weights(o, k) / total(o), "normalized")
    return _Table(first, weights, taps, outside)


def _shrinking(scale: tirx.Expr) -> float:
    """The scale, where it makes smaller; an antialiasing filter is as wide as that."""
    if isinstance(scale, tirx.FloatImm):
        return min(float(scale.value), 1.0)
    raise Refused("antialias with a scale that is computed at run time")


def _nearest(x: tirx.Expr, options: _Options) -> tirx.Expr:
    half = tirx.const(0.5, _F64)
    rounded = {
        "round_prefer_floor": lambda: tirx.ceil(x - half),
        "round_prefer_ceil": lambda: tirx.floor(x + half),
        "floor": lambda: tirx.floor(x),
        "ceil": lambda: tirx.ceil(x),
    }
    return cast(rounded[options.nearest](), "int64")


def _interpolated(
    x: te.Tensor, places: Sequence[int], axes: Sequence[_Axis], tables: Sequence[_Table], options: _Options
) -> te.Tensor:
    """Sum the neighbours of every element, each with the product of its weights along the axes."""
    dtype = str(x.dtype)
    wide = wider(dtype) if "float" in dtype else "float32"
    shape = list(x.shape)
    for place, axis in zip(places, axes, strict=True):
        shape[place] = axis.output
    single = all(t.weights is None for t in tables)

    def neighbour(index: Sequence[tirx.Expr], offsets: Sequence[tirx.Expr]) -> tirx.Expr:
        read = list(index)
        value = None
        for place, axis, made, k in zip(places, axes, tables, offsets, strict=True):
            o = index[place]
            read[place] = tirx.min(tirx.max(made.first(o) + k, prim(0)), axis.size - 1)
            if made.weights is not None:
                factor = cast(made.weights(o, k), wide)
                value = factor if value is None else value * factor
        element = x(*read)
        return element if value is None else cast(element, wide) * value

    def result(index: Sequence[tirx.Expr], value: tirx.Expr) -> tirx.Expr:
        outside = [t.outside(index[p]) for p, t in zip(places, tables, strict=True) if t.outside is not None]
        if outside:
            value = tirx.Select(tirx.any(*outside), tirx.const(options.extrapolation, str(value.expr_ty())), value)
        return value if str(value.expr_ty()) == dtype else _rounded(value, dtype)

    if single or math.prod(t.taps for t in tables) <= _UNROLLED_TAPS:

        def element(*index: tirx.Expr) -> tirx.Expr:
            choices = itertools.product(*(range(t.taps) for t in tables))
            terms = [neighbour(index, [prim(k) for k in choice]) for choice in choices]
            return result(index, sum(terms[1:], start=terms[0]))

        return te.compute(shape, element, name="resize")
    offsets = [te.reduce_axis((0, t.taps), name=f"k{i}") for i, t in enumerate(tables)]
    total = te.compute(shape, lambda *i: te.sum(neighbour(i, offsets), axis=offsets), name="total")
    return te.compute(shape, lambda *i: result(i, total(*i)), name="resize")


def _rounded(value: tirx.Expr, dtype: str) -> tirx.Expr:
    """A float as the data's type; integers saturate."""
    if "float" in dtype:
        return cast(value, dtype)
    wide = str(value.expr_ty())
    low, high = (cast(bound(dtype), wide) for bound in (tirx.min_value, tirx.max_value))
    return cast(tirx.min(tirx.max(value, low), high), dtype)
