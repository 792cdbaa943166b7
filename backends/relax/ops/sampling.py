"""Sampling an image at computed places: GridSample, AffineGrid, RoiAlign.

Shape letters: N batch, C channels, S the input's spatial sizes, O the output's, D their number, R regions. Images are
worked on with their channels last, so that a sample reads a few contiguous rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import onnx_ir as ir
from tvm import te, tirx

from backends.relax.attributes import declared_shape, get_float, get_int, get_str
from backends.relax.checks import require
from backends.relax.emitter import Emitter
from backends.relax.indices import checked_places
from backends.relax.interpolation import NEIGHBOURS, weight
from backends.relax.registry import emits
from backends.relax.scalars import cast, wider
from backends.relax.stages import table
from backends.relax.values import ChannelsLast, Refused, Result, prim

_MODES = {"bilinear": "linear", "bicubic": "cubic"}
"""Names of opset 16, and today's."""


@emits("GridSample")
def grid_sample(ctx: Emitter, node: ir.Node) -> Result:
    """Interpolate an image at the places that a grid names in coordinates from -1 to 1."""
    x, grid = node.inputs
    mode = get_str(node, "mode", "linear")
    mode = _MODES.get(mode, mode)
    padding = get_str(node, "padding_mode", "zeros")
    corners = get_int(node, "align_corners", 0) == 1
    sizes = ctx.shape(x)[2:]
    require(ctx, ctx.shape(grid)[0], ctx.shape(x)[0], "images and grids")

    def build(x_NSC: te.Tensor, grid_NOD: te.Tensor) -> te.Tensor:
        places = _places(grid_NOD, sizes, mode, padding, corners=corners)
        return _sampled(x_NSC, places, sizes, mode, padding, corners=corners)

    return ChannelsLast(ctx.te(build, ctx.channels_last(x), ctx.x(grid)))


@emits("AffineGrid")
def affine_grid(ctx: Emitter, node: ir.Node) -> Result:
    """The places [N, O, D] to which affine maps [N, D, D + 1] send the elements of an image."""
    theta, size = node.inputs
    corners = get_int(node, "align_corners", 0) == 1
    sizes = ctx.ints(size)
    declared = declared_shape(node.outputs[0])
    if sizes is None and declared is None:
        raise Refused("the size is computed at run time")
    outputs = [ctx.derived(d) for d in sizes[2:]] if sizes is not None else [prim(d) for d in (declared or [])[1:-1]]

    def build(theta_: te.Tensor) -> te.Tensor:
        dtype = str(theta_.dtype)

        def element(n: tirx.Expr, *index: tirx.Expr) -> tirx.Expr:
            *position, d = index
            total = theta_(n, d, prim(len(outputs)))
            for k, (at, length) in enumerate(reversed(list(zip(position, outputs, strict=True)))):
                total = total + theta_(n, d, prim(k)) * _normalized(at, length, dtype, corners=corners)
            return total

        return te.compute((theta_.shape[0], *outputs, prim(len(outputs))), element, name="affine_grid")

    return ctx.te(build, ctx.x(theta))


@emits("RoiAlign")
def roi_align(ctx: Emitter, node: ir.Node) -> Result:
    """Pool bilinear samples of regions of an image, into [R, C, O]."""
    x, rois, batches = node.inputs
    samples = get_int(node, "sampling_ratio", 0)
    if samples < 1:
        raise Refused("sampling_ratio 0: the number of samples depends on the region")
    pooled = (get_int(node, "output_height", 1), get_int(node, "output_width", 1))
    aligned = get_str(node, "coordinate_transformation_mode", "half_pixel") == "half_pixel"
    scale = get_float(node, "spatial_scale", 1.0)
    largest = get_str(node, "mode", "avg") == "max"

    def build(x_NSC: te.Tensor, rois_R4: te.Tensor, batches_R: te.Tensor) -> te.Tensor:
        wide = wider(str(x_NSC.dtype))
        points = [_roi_points(rois_R4, d, pooled[d], samples, scale, aligned=aligned, dtype=wide) for d in (0, 1)]
        taps = [te.reduce_axis((0, samples), name=name) for name in ("sy", "sx")]

        def element(r: tirx.Expr, oy: tirx.Expr, ox: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
            at = [p(r, o * samples + cast(k, "int64")) for p, o, k in zip(points, (oy, ox), taps, strict=True)]
            terms = _bilinear(x_NSC, cast(batches_R(r), "int64"), at, c, wide)
            if largest:
                return te.max(tirx.max(tirx.max(terms[0], terms[1]), tirx.max(terms[2], terms[3])), axis=taps)
            return te.sum(sum(terms[1:], start=terms[0]), axis=taps)

        total = te.compute((rois_R4.shape[0], *pooled, x_NSC.shape[3]), element, name="samples")
        share = tirx.const(1.0 if largest else 1.0 / samples**2, wide)
        return te.compute(total.shape, lambda *i: cast(total(*i) * share, x_NSC.dtype), name="roi_align")

    places = checked_places(ctx, batches, [ctx.shape(x)[0]], from_end=False)
    return ChannelsLast(ctx.te(build, ctx.channels_last(x), ctx.x(rois), places))


def _normalized(at: tirx.Expr, length: tirx.Expr, dtype: str, *, corners: bool) -> tirx.Expr:
    """The coordinate from -1 to 1 of an element of an axis."""
    one, two = tirx.const(1, dtype), tirx.const(2, dtype)
    x = cast(at, dtype)
    if corners:
        return two * x / cast(tirx.max(length - 1, prim(1)), dtype) - one
    return (two * x + one) / cast(length, dtype) - one


def _places(grid: te.Tensor, sizes: Sequence[tirx.Expr], mode: str, padding: str, *, corners: bool) -> list[te.Tensor]:
    """For each spatial axis the coordinate [N, O] on it that every grid point names."""
    dtype = wider(str(grid.dtype))
    half, one = tirx.const(0.5, dtype), tirx.const(1, dtype)

    def place(axis: int, *index: tirx.Expr) -> tirx.Expr:
        size = cast(sizes[axis], dtype)
        named = cast(grid(*index, prim(len(sizes) - 1 - axis)), dtype) + one
        x = named * half * (size - one) if corners else (named * size - one) * half
        if mode == "nearest":
            x = tirx.nearbyint(x)
        if padding == "border":
            edge = tirx.const(0.0 if corners else 0.5, dtype)
            inside = tirx.min(tirx.max(x, tirx.const(0, dtype)), size - one)
            return tirx.Select(tirx.any(x < -edge, x > size - one + edge), inside, x)
        return _reflected(x, size, corners=corners) if padding == "reflection" else x

    def coordinates(axis: int) -> te.Tensor:
        return table(grid.shape[:-1], lambda *i: place(axis, *i), f"place{axis}")

    return [coordinates(axis) for axis in range(len(sizes))]


def _reflected(x: tirx.Expr, size: tirx.Expr, *, corners: bool) -> tirx.Expr:
    """Fold a coordinate back between the first and the last element's centres (`corners`) or outer edges."""
    dtype = str(x.expr_ty())
    low = tirx.const(0.0 if corners else -0.5, dtype)
    extent = tirx.max(size - tirx.const(1 if corners else 0, dtype), tirx.const(1e-6, dtype))
    distance = tirx.abs(x - low)
    folds = tirx.floor(distance / extent)
    rest = distance - folds * extent
    two = tirx.const(2, dtype)
    even = tirx.EQ(folds, two * tirx.floor(folds / two))
    return tirx.Select(even, low + rest, low + extent - rest)


def _sampled(
    x: te.Tensor,
    places: Sequence[te.Tensor],
    sizes: Sequence[tirx.Expr],
    mode: str,
    padding: str,
    *,
    corners: bool,
) -> te.Tensor:
    wide = wider(str(x.dtype))
    tables = [
        _neighbours(place, size, mode, padding, wide, corners=corners)
        for place, size in zip(places, sizes, strict=True)
    ]
    taps = 1 if mode == "nearest" else NEIGHBOURS[mode][1]

    def term(n: tirx.Expr, position: Sequence[tirx.Expr], c: tirx.Expr, choice: Sequence[int]) -> tirx.Expr:
        at = [(n, *position, prim(k)) for k in choice]
        factors = [factor(*i) for (_, factor), i in zip(tables, at, strict=True)]
        read = [index(*i) for (index, _), i in zip(tables, at, strict=True)]
        return math.prod(factors[1:], start=factors[0]) * cast(x(n, *read, c), wide)

    def element(n: tirx.Expr, *index: tirx.Expr) -> tirx.Expr:
        *position, c = index
        terms = [term(n, position, c, choice) for choice in itertools.product(range(taps), repeat=len(sizes))]
        return cast(sum(terms[1:], start=terms[0]), x.dtype)

    return te.compute((x.shape[0], *places[0].shape[1:], x.shape[-1]), element, name="grid_sample")


def _neighbours(
    place: te.Tensor, size: tirx.Expr, mode: str, padding: str, dtype: str, *, corners: bool
) -> tuple[te.Tensor, te.Tensor]:
    """Of one axis the indices and the weights [N, O, taps] of what a sample is made of."""
    begin, taps = (0, 1) if mode == "nearest" else NEIGHBOURS[mode]
    shape = (*place.shape, prim(taps))

    def base(*i: tirx.Expr) -> tirx.Expr:
        return tirx.floor(place(*i[:-1])) + cast(i[-1] + begin, place.dtype)

    def index(*i: tirx.Expr) -> tirx.Expr:
        return _folded_index(base(*i), size, padding, corners=corners)

    def factor(*i: tirx.Expr) -> tirx.Expr:
        one = tirx.const(1, dtype)
        value = one if mode == "nearest" else cast(weight(mode, base(*i) - place(*i[:-1])), dtype)
        if padding != "zeros":
            return value
        return tirx.Select(tirx.all(index(*i) >= 0, index(*i) < size), value, tirx.const(0, dtype))

    within = table(shape, lambda *i: tirx.min(tirx.max(index(*i), prim(0)), size - 1), "index")
    return within, table(shape, factor, "factor")


def _folded_index(base: tirx.Expr, size: tirx.Expr, padding: str, *, corners: bool) -> tirx.Expr:
    if padding != "reflection":
        return cast(base, "int64")
    return cast(tirx.floor(_reflected(base, cast(size, str(base.expr_ty())), corners=corners)), "int64")


def _roi_points(
    rois: te.Tensor, axis: int, pooled: int, samples: int, scale: float, *, aligned: bool, dtype: str
) -> te.Tensor:
    """The coordinates [R, pooled * samples] of a region's samples on the axis y (0) or x (1)."""
    shift = tirx.const(0.5 if aligned else 0.0, dtype)

    def corner(r: tirx.Expr, column: int) -> tirx.Expr:
        return cast(rois(r, prim(column)), dtype) * tirx.const(scale, dtype) - shift

    def point(r: tirx.Expr, k: tirx.Expr) -> tirx.Expr:
        start, end = corner(r, 1 - axis), corner(r, 3 - axis)
        extent = end - start if aligned else tirx.max(end - start, tirx.const(1, dtype))
        return start + (cast(k, dtype) + tirx.const(0.5, dtype)) * extent * tirx.const(1 / (pooled * samples), dtype)

    return te.compute((rois.shape[0], prim(pooled * samples)), point, name=f"points{axis}")


def _bilinear(
    x: te.Tensor, batch: tirx.Expr, at: Sequence[tirx.Expr], channel: tirx.Expr, dtype: str
) -> list[tirx.Expr]:
    """The four weighted neighbours of a point; zero for a point more than one element outside."""
    zero, one = tirx.const(0, dtype), tirx.const(1, dtype)
    sizes = x.shape[1:3]
    outside = tirx.any(*(c for p, s in zip(at, sizes, strict=True) for c in (p < -one, p > cast(s, dtype))))
    ends = []
    for p, size in zip(at, sizes, strict=True):
        inside = tirx.min(tirx.max(p, zero), cast(size - 1, dtype))
        low = tirx.max(tirx.min(cast(tirx.floor(inside), "int64"), size - 1), prim(0))
        ratio = inside - cast(low, dtype)
        ends.append([(low, one - ratio), (tirx.min(low + 1, size - 1), ratio)])
    terms = []
    for (y, wy), (x_, wx) in itertools.product(*ends):
        factor = tirx.Select(outside, zero, wy * wx)
        terms.append(factor * cast(x(batch, y, x_, channel), dtype))
    return terms
