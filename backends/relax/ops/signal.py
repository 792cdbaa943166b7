"""Fourier transforms as matrix products, and window functions.

Shape letters: L lead axes, T elements of the transformed axis, F frequencies, P parts of a number (1 real, 2 complex).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import declared_shape, get_int
from backends.relax.contraction import product
from backends.relax.emitter import Emitter
from backends.relax.forms import dtype_name
from backends.relax.registry import emits
from backends.relax.scalars import cast
from backends.relax.values import Refused, Result, prim, static_int

_LARGEST_MATRIX = 1 << 22
"""Elements of a transform's matrix; a longer transform wants a fast algorithm."""

Floats = npt.NDArray[np.float64]


@emits("DFT")
def dft(ctx: Emitter, node: ir.Node) -> Result:
    """The discrete Fourier transform of one axis."""
    x = node.inputs[0]
    rank = ctx.rank(x)
    axis = ctx.axis(_dft_axis(ctx, node), rank)
    shape = ctx.shape(x)
    size, parts = static_int(shape[axis]), static_int(shape[-1])
    if size is None or parts is None:
        raise Refused("the transformed axis is symbolic")
    inverse, onesided = get_int(node, "inverse", 0) == 1, get_int(node, "onesided", 0) == 1
    given = ctx.static_ints(node.inputs[1], "dft_length") if len(node.inputs) > 1 else None
    length = given[0] if given else 2 * (size - 1) if inverse and onesided else size
    matrix = _dft_matrix(size, parts, length, inverse=inverse, onesided=onesided)
    order = [*(a for a in range(rank - 1) if a != axis), axis, rank - 1]
    lead = [shape[a] for a in order[:-2]]
    rows = ctx.emit(relax.op.permute_dims(ctx.x(x), order)) if order != list(range(rank)) else ctx.x(x)
    out_parts = 1 if inverse and onesided else 2
    y = _transformed(ctx, rows, lead, matrix, out_parts, ctx.dtype(x))
    back = [order.index(a) for a in range(rank)]
    return relax.op.permute_dims(y, back) if back != list(range(rank)) else y


@emits("STFT")
def stft(ctx: Emitter, node: ir.Node) -> Result:
    """The Fourier transform of overlapping frames [L, frames, F, 2] of a signal [L, T, P].

    A signal [L, T] is real, as ONNX Runtime takes it.
    """
    signal, step, window, length = [*node.inputs, None, None][:4]
    batch, samples, *last = ctx.shape(signal)
    parts = static_int(last[0]) if last else 1
    known = ctx.static_ints(length, "frame_length") if length is not None else None
    size = known[0] if known else static_int(ctx.shape(window)[0]) if window is not None else None
    if size is None or parts is None:
        raise Refused("the frame length is not known")
    steps = ctx.ints(step)
    declared = declared_shape(node.outputs[0])
    if steps is None and declared is None:
        raise Refused("frame_step is computed at run time")
    given = tirx.floordiv(samples - size, steps[0]) + 1 if steps is not None else prim((declared or [])[1])
    frames = ctx.derived(given)
    dtype = ctx.dtype(signal)
    operands = [ctx.x(window)] if window is not None else []
    run_time = [ctx.emit(relax.op.reshape(ctx.x(step), relax.ShapeExpr([1])))] if steps is None else []

    def build(signal_: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        hop = steps[0] if steps is not None else cast(rest[-1](prim(0)), "int64")

        def element(b: tirx.Expr, f: tirx.Expr, t: tirx.Expr, p: tirx.Expr) -> tirx.Expr:
            value = signal_(b, f * hop + t, *([p] if last else []))
            return value * rest[0](t) if window is not None else value

        return te.compute((batch, frames, prim(size), prim(parts)), element, name="frames")

    framed = ctx.te(build, ctx.x(signal), *operands, *run_time)
    matrix = _dft_matrix(size, parts, size, inverse=False, onesided=get_int(node, "onesided", 1) == 1)
    return _transformed(ctx, framed, [batch, frames], matrix, 2, dtype)


@emits("HannWindow")
def hann_window(ctx: Emitter, node: ir.Node) -> Result:
    """0.5 - 0.5 cos."""
    return _window(ctx, node, lambda turn: 0.5 - 0.5 * np.cos(turn))


@emits("HammingWindow")
def hamming_window(ctx: Emitter, node: ir.Node) -> Result:
    """25/46 - 21/46 cos."""
    return _window(ctx, node, lambda turn: 25 / 46 - 21 / 46 * np.cos(turn))


@emits("BlackmanWindow")
def blackman_window(ctx: Emitter, node: ir.Node) -> Result:
    """0.42 - 0.5 cos + 0.08 cos of twice the angle."""
    return _window(ctx, node, lambda turn: 0.42 - 0.5 * np.cos(turn) + 0.08 * np.cos(2 * turn))


@emits("MelWeightMatrix")
def mel_weight_matrix(ctx: Emitter, node: ir.Node) -> Result:
    """Triangles over the bins of a spectrum [F, mel bins], evenly spaced on the mel scale."""
    bins, length, rate = (int(ctx.required_constant(v, "a parameter")) for v in node.inputs[:3])
    low, high = (float(ctx.required_constant(v, "an edge")) for v in node.inputs[3:])
    dtype = dtype_name(ir.DataType(get_int(node, "output_datatype", ir.DataType.FLOAT)))
    mel_low, mel_high = (2595 * math.log10(1 + edge / 700) for edge in (low, high))
    mels = np.arange(bins + 2) * ((mel_high - mel_low) / (bins + 2)) + mel_low
    edges = ((length + 1) * (700 * (10 ** (mels / 2595) - 1)) // rate).astype(np.int64)
    spectrum = np.arange(length // 2 + 1)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = np.where(left == centre, spectrum == centre, (spectrum - left) / np.maximum(centre - left, 1))
    falling = (right - spectrum) / np.maximum(right - centre, 1)
    inside = (spectrum >= left) & (spectrum < np.maximum(right, centre + 1))
    values = np.where(inside, np.where(spectrum > centre, falling, rising), 0.0)
    values = np.where((spectrum == centre) & (right > centre), 1.0, values)
    return relax.const(values.astype(dtype))


def _dft_axis(ctx: Emitter, node: ir.Node) -> int:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return (ctx.static_ints(node.inputs[2], "axis") or [-2])[0]
    return get_int(node, "axis", -2 if node.version is None or node.version >= 20 else 1)


def _dft_matrix(size: int, parts: int, length: int, *, inverse: bool, onesided: bool) -> Floats:
    """The matrix [T * P, F * P'] that takes the parts of T numbers to those of their transform of that length."""
    if inverse and onesided:
        return _real_inverse(size, parts, length)
    frequencies = length // 2 + 1 if onesided else length
    if size * parts * frequencies * 2 > _LARGEST_MATRIX:
        raise Refused(f"a transform of length {length}")
    angle = 2 * np.pi * (np.outer(np.arange(size), np.arange(frequencies)) % length) / length
    angle = angle if inverse else -angle
    scale = 1 / length if inverse else 1.0
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    matrix = np.zeros((size, parts, frequencies, 2))
    matrix[:, 0, :, 0], matrix[:, 0, :, 1] = cos, sin
    if parts == 2:
        matrix[:, 1, :, 0], matrix[:, 1, :, 1] = -sin, cos
    matrix[length:] = 0
    return matrix.reshape(size * parts, frequencies * 2)


def _real_inverse(size: int, parts: int, length: int) -> Floats:
    """From the first half of a spectrum back to real numbers: the other half is its mirror image, conjugated."""
    if size * parts * length > _LARGEST_MATRIX:
        raise Refused(f"a transform of length {length}")
    angle = 2 * np.pi * (np.outer(np.arange(size), np.arange(length)) % length) / length
    mirrored = (np.arange(size) > 0) & (2 * np.arange(size) < length)
    weight = np.where(mirrored, 2.0, 1.0) / length
    weight[length // 2 + 1 :] = 0
    matrix = np.zeros((size, parts, length))
    matrix[:, 0] = np.cos(angle) * weight[:, None]
    if parts == 2:
        matrix[:, 1] = -np.sin(angle) * weight[:, None]
    return matrix.reshape(size * parts, length)


def _transformed(
    ctx: Emitter, x: relax.Var, lead: list[tirx.Expr], matrix: Floats, parts: int, dtype: str
) -> relax.Expr:
    """x: [L, T, P] times a matrix [T * P, F * P'], as [L, F, P']."""
    rows = relax.op.reshape(x, relax.ShapeExpr([ctx.derived(math.prod(lead, start=prim(1))), prim(matrix.shape[0])]))
    constant = ctx.emit(relax.const(matrix.astype(dtype)))
    y = product(ctx, ctx.emit(rows), constant, prim(matrix.shape[1]), None)
    return ctx.emit(relax.op.reshape(y, relax.ShapeExpr([*lead, prim(matrix.shape[1] // parts), prim(parts)])))


def _window(ctx: Emitter, node: ir.Node, function: Callable[[Floats], Floats]) -> Result:
    sizes = ctx.ints(node.inputs[0])
    declared = declared_shape(node.outputs[0])
    size = static_int(sizes[0]) if sizes else declared[0] if declared else None
    if size is None:
        raise Refused("the size is computed at run time")
    turns = size if get_int(node, "periodic", 1) == 1 else max(size - 1, 1)
    dtype = dtype_name(ir.DataType(get_int(node, "output_datatype", ir.DataType.FLOAT)))
    return relax.const(function(2 * np.pi * np.arange(size) / turns).astype(dtype))
