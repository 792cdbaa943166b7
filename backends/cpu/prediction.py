"""What each kernel has to do, by the choices of the schedule rules: arithmetic, traffic at each level, tasks.

One function for each rule. The numbers are for a whole call; `backends.relax.forecast` makes seconds of them, with the
clock and the bandwidth of the machine that runs it. docs/tile-model.md explains the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from backends.cpu import generic, product_nest
from backends.cpu.amounts import argument_bytes, cost_of, element_bytes, scaled, total
from backends.cpu.depthwise import MOST_PIXELS
from backends.cpu.epilogue import Epilogue
from backends.cpu.four_bits_work import work_of
from backends.cpu.key_bounds import key_bounds
from backends.cpu.matmul import Cut
from backends.cpu.quads import QUAD, is_bytes
from backends.cpu.stage_work import parallel_rows, spilled, stage_cycles, stage_flops, tail_cycles
from backends.cpu.taps import Taps, edges
from backends.cpu.tiles import Tiles
from backends.relax.kernel import Kernel
from backends.relax.loops import Expr, Var, known, loads_of, product
from backends.relax.plan import Work
from backends.relax.size_formula import formula
from backends.relax.size_value import Formula
from backends.relax.values import Refused
from optimizer.target import Cpu

__all__ = ["predict"]

_TILE_CYCLES = 24.0
"""To begin and end a register tile: its addresses are computed, and the first sums wait for their operands."""
_L1_SHARE = 0.6
_L2_SHARE = 0.7
"""As much of a cache as what is used again can count on."""
_SOME_ROWS, _SOME_DEPTH, _SOME_WIDTH = 128, 512, 64
"""Where a size is symbolic, what one of them costs is taken from so many."""
_POINTS = 36
"""Products for a patch of Winograd's F(4, 3)."""


@dataclass(frozen=True)
class _Heavy:
    """A heavy stage's own share, as in `Work`; `weights` are the arguments that are packed weights."""

    flops: Formula
    cycles: Formula
    near: Formula
    far: Formula
    tasks: Formula
    weights: Sequence[Var] = ()
    width: int = 1


def predict(kernel: Kernel, cpu: Cpu) -> Work | None:
    """The work of a kernel; `None` where its sizes are beyond formulas."""
    try:
        return _predict(kernel, cpu)
    except Refused:
        return None


def _predict(kernel: Kernel, cpu: Cpu) -> Work:
    attention = {stage.kind for stage in kernel.stages} & {"attention"}
    count = _HEAVY.get("attention" if attention else kernel.stages[0].kind)
    heavy = count(kernel, Tiles(cpu)) if count else None
    if heavy is None:
        return _light(kernel, cpu)
    epilogue = Epilogue.of(kernel)
    following = () if attention else tuple(s for s in (epilogue.tail, *epilogue.rest) if s is not None)
    weights = total(*(scaled(v.shape, element_bytes(v.dtype)) for v in heavy.weights))
    kept = kernel.stages if epilogue.rest and not attention else ()
    return Work(
        _arguments(kernel),
        total(heavy.flops, stage_flops(following, cpu)),
        total(heavy.cycles, *(tail_cycles(stage, cpu) for stage in following)),
        heavy.near,
        heavy.far,
        weights,
        total(argument_bytes(kernel, heavy.weights), spilled(kernel, kept)),
        heavy.tasks,
        heavy.width,
    )


def _arguments(kernel: Kernel) -> list[list[int | str]]:
    """The shapes of the arguments; what is neither a number nor a name is a 1 that binds nothing."""

    def dimension(size: Expr) -> int | str:
        as_formula = formula(size)
        return as_formula if isinstance(as_formula, (int, str)) else 1

    buffers = [p for p in kernel.function.params if isinstance(p.ty, tirx.BufferType)]
    return [[dimension(d) for d in b.shape] for b in buffers]


def _light(kernel: Kernel, cpu: Cpu) -> Work:
    """Row by row, intermediate results stay in the first-level cache; else each stage writes a whole tensor."""
    stages = kernel.stages
    shared = generic.shared_rows(kernel)
    tasks = parallel_rows(stages[0])
    if shared:
        rows = [a.extent for a in stages[0].spatial[:shared]]
        tasks = scaled(rows, 1.0) if generic.worthwhile(stages) else 1
    kept = 0 if shared else spilled(kernel, stages)
    data = total(argument_bytes(kernel), kept)
    flops, cycles = stage_flops(stages, cpu), stage_cycles(stages, cpu)
    return Work(_arguments(kernel), flops, cycles, 0, 0, 0, data, tasks)


def _output_cycles(cpu: Cpu) -> float:
    """To store a vector of results; its way through the epilogue's buffer overlaps with the next tile's arithmetic."""
    return 1.0 + 1.0 / cpu.load_ports


def _at_once(dtype: object, cpu: Cpu) -> int:
    """Multiply-adds in a lane that the processor does at once."""
    return {"bfloat16": 2 if cpu.bfloat16 else 1, "int8": 4 if cpu.vnni else 1}.get(str(dtype), 1)


def _matmul(kernel: Kernel, tiles: Tiles) -> _Heavy | None:
    """Counted for all rows and columns, or for some of them where their number is symbolic, and scaled from there."""
    parts = product_nest.take_apart(kernel.stages[0])
    if parts is None:
        return None
    cpu, dtype = tiles.cpu, str(parts.right.source.dtype)
    itemsize, lanes = element_bytes(dtype), tiles.lanes(dtype)
    batches, rows = [a.extent for a in parts.batch], product([a.extent for a in parts.rows])
    count, columns = known(rows) or _SOME_ROWS, known(parts.column.extent) or 2 * lanes
    whole = known(parts.depth.extent)
    depth = whole or _SOME_DEPTH
    width = parts.width or tiles.panel_width(known(rows), columns, depth, dtype)
    together = tiles.together(dtype)
    short = tiles.is_short(None if whole is None else whole // together, together)
    step_cycles = tile_count = panel_reads = 0.0
    full, rest = divmod(columns, width)
    for panels, vectors in ((full, width // lanes), (1 if rest else 0, -(-rest // lanes))):
        if panels:
            tile = tiles.tile_rows(known(rows), vectors, parts.apart, short=short)
            step_cycles += panels * tiles.sweep_cycles(count, tile, vectors)
            tile_count += panels * -(-count // tile)
            panel_reads += panels * -(-count // tile) * min(vectors * lanes, columns)
    panels = full + bool(rest)
    outputs = count * -(-columns // lanes)
    scale = [*batches, *([] if known(rows) else [rows]), *([] if known(parts.column.extent) else [parts.column.extent])]
    unit = (1 if known(rows) else count) * (1 if known(parts.column.extent) else columns)
    deep = [*scale, parts.depth.extent]
    right = [parts.column.extent, parts.depth.extent]
    share = _at_once(parts.right.source.dtype, cpu)
    flops = scaled([*batches, rows, parts.column.extent, parts.depth.extent], 2.0)
    cycles = total(
        scaled(deep, step_cycles / share / unit),
        scaled(scale, (tile_count * _TILE_CYCLES + outputs * _output_cycles(cpu)) / unit),
    )
    cut = Cut.of_product(parts, tiles)
    panel_bytes = (depth * itemsize if cut is None else 4 * cut.depth) * width
    again = panel_reads * itemsize / unit if panel_bytes > _L1_SHARE * cpu.l1_bytes else 0.0
    left = (panels - 1) * count * itemsize / unit
    # Of rows that stay where all panels pass by.
    blocks = tiles.row_blocks(rows, whole, width) if cut is None else cut.row_blocks(rows)
    left_bytes = count * depth * itemsize if blocks is None else 0
    near = far = 0.0
    for amount, size in ((again, panel_bytes), (left, left_bytes)):
        fits = size <= _L2_SHARE * cpu.l2_bytes
        near, far = near + (amount if fits else 0.0), far + (0.0 if fits else amount)
    serial = isinstance(flops, int) and flops < product_nest.PARALLEL_FLOPS
    return _Heavy(
        flops,
        cycles,
        total(scaled(deep, near), 0 if cut is None else scaled([*batches, rows, columns], 8 * cut.blocks)),
        total(scaled(deep, far), 0 if blocks is None else scaled([*batches, blocks, *right], itemsize)),
        1 if serial else scaled(scale, panels * max(1.0, count / 8) / unit),
        [parts.right.source] if parts.width else [],
        share,
    )


def _convolution(kernel: Kernel, tiles: Tiles) -> _Heavy | None:
    """Counted for a row of pixels of all channels, or for some pixels where the width is symbolic."""
    stage, cpu = kernel.stages[0], tiles.cpu
    taps, groups = Taps.of(stage), int(stage.annotations["tersor.groups"])  # type: ignore[call-overload]
    data, weights = stage.operand(4), stage.operand(5)
    lanes, itemsize = tiles.lanes(str(stage.buffer.dtype)), element_bytes(data.dtype)
    images, rows, out_width, channels = (a.extent for a in stage.spatial)
    together = tiles.together(str(data.dtype)) if is_bytes(str(data.dtype)) else 1
    width, in_width, panel = known(out_width), known(data.shape[2]), int(weights.shape[4]) // together
    depth = int(weights.shape[3]) * taps.kh * together
    share = _at_once(weights.dtype, cpu) if together > 1 else 1
    size = width or _SOME_WIDTH
    short = tiles.is_short(depth // together, together)
    step_cycles = tile_count = 0.0
    full, rest = divmod(int(channels) // groups, panel)
    for panels, vectors in ((full, panel // lanes), (1 if rest else 0, -(-rest // lanes))):
        if panels:
            tile = tiles.tile_rows(width, vectors, short=short)
            runs = [(0, size, True)] if width is None or in_width is None else edges(taps, width, in_width, tile)
            for _, pixels, interior in runs:
                pieces, one = (max(1, pixels // tile), tile) if interior else (1, pixels)
                step_cycles += panels * pieces * tiles.step_cycles(one, vectors)
                tile_count += panels * pieces
    scale = [images, rows, *([] if width else [out_width])]
    unit = 1 if width else size
    outputs = size * -(-int(channels) // groups // lanes)
    a_row = groups * (step_cycles * depth / share + tile_count * _TILE_CYCLES + outputs * _output_cycles(cpu)) / unit
    panel_bytes, image_bytes = depth * panel * itemsize, known(product([*data.shape[1:], itemsize]))
    again = groups * tile_count * panel_bytes / unit if panel_bytes > _L1_SHARE * cpu.l1_bytes else 0.0
    image = scaled(data.shape, (full + bool(rest) - 1) * itemsize)
    panels_fit = panel_bytes <= _L2_SHARE * cpu.l2_bytes
    image_fits = image_bytes is None or image_bytes <= _L2_SHARE * cpu.l2_bytes
    return _Heavy(
        scaled([images, rows, out_width, channels], 2.0 * depth),
        scaled(scale, a_row),
        total(scaled(scale, again if panels_fit else 0.0), image if image_fits else 0),
        total(scaled(scale, 0.0 if panels_fit else again), 0 if image_fits else image),
        scaled([images, rows], groups * (full + bool(rest))),
        [weights],
        share,
    )


def _winograd(kernel: Kernel, tiles: Tiles) -> _Heavy | None:
    stage, cpu = kernel.stages[0], tiles.cpu
    filters, lanes = stage.operand(5), tiles.lanes()
    images, height, width, channels = (a.extent for a in stage.spatial)
    panels, depth, panel = (int(filters.shape[i]) for i in (0, 3, 4))
    batch, down, across = known(images), known(height), known(width)
    scale, unit = ([images] if batch is None else []), 1.0
    if down is None or across is None:  # as many whole blocks as the pixels fill
        _, size = tiles.winograd_blocks(None, depth, panel)
        blocks, patches = 1, size
        scale, unit = [images, height, width], 16.0 * size
    else:
        patches = -(-down // 4) * -(-across // 4) * (batch or 1)
        divided, size = tiles.winograd_blocks(patches, depth, panel)
        blocks = divided or 1
    vectors = panel // lanes
    rows = tiles.tile_rows(size, vectors)
    points = _POINTS * blocks * panels
    sweep = points * tiles.sweep_cycles(size, rows, vectors) * depth
    starts = points * -(-size // rows)
    transforms = patches * (depth + int(channels)) / lanes * tiles.transform_cycles
    again = points * (size * depth + 2 * size * panel) * 4
    filter_bytes = _POINTS * depth * int(channels) * 4
    shares = 1 if blocks % cpu.cores == 0 or blocks >= 4 * cpu.cores or batch is None else min(cpu.cores, panels)
    extra = patches * depth / lanes * tiles.transform_cycles * (shares - 1)
    filters_again = filter_bytes * (blocks - 1 if unit == 1.0 else 1)
    return _Heavy(
        scaled([*scale, channels], 2.0 * _POINTS * patches * depth / unit),
        scaled(scale, (sweep + starts * _TILE_CYCLES + transforms + extra) / unit),
        scaled(scale, again / unit),
        scaled(scale, filters_again / unit),
        scaled(scale, blocks * shares / unit),
        [filters],
    )


def _depthwise(kernel: Kernel, tiles: Tiles) -> _Heavy | None:
    stage, cpu = kernel.stages[0], tiles.cpu
    taps, weights = Taps.of(stage), stage.operand(3)
    pixels = min(MOST_PIXELS, cpu.vector_registers // 2 - 1)
    window = taps.kh * taps.kw
    tap = max(1.0 / cpu.fma_pipes, (1.0 + 1.0 / pixels) / cpu.load_ports)
    vector = window * tap + _TILE_CYCLES / pixels + _output_cycles(cpu)
    return _Heavy(
        scaled([a.extent for a in stage.spatial], 2.0 * window),
        scaled([a.extent for a in stage.spatial], vector / tiles.lanes()),
        0,
        0,
        scaled([a.extent for a in stage.spatial[:2]], 1.0),
        [weights],
    )


def _attention(kernel: Kernel, tiles: Tiles) -> _Heavy | None:
    stages, cpu = {s.kind: s for s in kernel.stages}, tiles.cpu
    names = [f"attention{part}" for part in ("", ".masked", ".context")]
    if any(name not in stages for name in names):
        return None
    scores, masked, context = (stages[name] for name in names)
    batch, heads, rows, keys = (a.extent for a in scores.spatial)
    depth, values = known(scores.reduction[0].extent), known(context.spatial[3].extent)
    if depth is None or values is None:
        return None
    lanes = tiles.lanes()
    known_rows = known(rows)
    vectors = min(4 if tiles.fits(5, 4) else 2, -(-(known_rows or 4 * lanes) // lanes))
    blocks = 1.0 if known_rows is None else -(-known_rows // (vectors * lanes))
    block_rows = [] if known_rows is not None else [rows]
    in_batch, head, row = (axis.var for axis in scores.spatial[:3])
    _, high = key_bounds(masked, row, row, (in_batch, head))
    seen = 1.0 if high is None else 0.5 + 0.5 / max(blocks, 1.0)
    mask = cost_of(masked.value, cpu.lanes)
    power = cost_of(tirx.exp(tirx.const(0, "float32") + scores.spatial[3].var.astype("float32")), cpu.lanes)
    if known_rows is not None and known_rows <= lanes // 2:  # see `few_queries`: keys are read once, in a stream
        weights = (mask.cycles(cpu.fma_pipes) + power.cycles(cpu.fma_pipes)) / lanes
        few = known_rows * ((depth + values) / lanes / cpu.fma_pipes + weights)
        flops = scaled([batch, heads, keys], 2.0 * (depth + values) * known_rows)
        return _Heavy(flops, scaled([batch, heads, keys], few), 0, 0, scaled([batch, heads], 1.0))
    tile = tiles.tile_rows(known(keys), vectors)
    width, together = (1, QUAD) if any(is_bytes(str(v.source.dtype)) for v in loads_of(scores.value)) else (4, 1)
    a_key = tiles.sweep_cycles(tile, tile, vectors) / tile * depth / together
    a_key += tiles.sweep_cycles(values, tiles.tile_rows(values, vectors), vectors) / together
    a_key += vectors * (2 * mask.cycles(cpu.fma_pipes) + power.cycles(cpu.fma_pipes) + 6.0)
    a_block = vectors * lanes * (depth + values) / lanes * 4.0 + 200.0
    unit = 1.0 if known_rows is not None else vectors * lanes
    key_bytes = (depth + values) * width
    all_keys = known(keys)
    fits = all_keys is None or all_keys * key_bytes <= _L2_SHARE * cpu.l2_bytes
    scale: list[Expr | int] = [batch, heads, *block_rows]
    again = scaled([*scale, keys], blocks * seen * key_bytes / unit)
    return _Heavy(
        scaled([batch, heads, rows, keys], 2.0 * (depth + values) * seen),
        total(scaled([*scale, keys], blocks * seen * a_key / unit), scaled(scale, blocks * a_block / unit)),
        again if fits else 0,
        0 if fits else again,
        scaled(scale, blocks / unit),
    )


def _four_bits(kernel: Kernel, tiles: Tiles) -> _Heavy | None:
    work = work_of(kernel.stages[0], tiles)
    return None if work is None else _Heavy(work.flops, work.cycles, work.near, 0, work.tasks, work.weights)


_HEAVY: dict[str, Callable[[Kernel, Tiles], _Heavy | None]] = {
    "matmul": _matmul,
    "four_bits": _four_bits,
    "conv2d": _convolution,
    "winograd": _winograd,
    "depthwise": _depthwise,
    "attention": _attention,
}
