"""What a schedule moves, counted: against numbers that follow from its tiles."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tvm
from onnx_ir.passes.common import ShapeInferencePass
from tvm import tirx

from backends.cuda.source import cuda_target
from backends.gpu.launch import Ids, Launch, scheduled
from backends.gpu.tile_model import Sizes, best_tile
from backends.relax.loops import BufferLoad, BufferStore, Expr, IfThenElse, Stmt, i64, sequence
from benchmarks.cuda_kernel_rows import described, kind_of
from benchmarks.cuda_schedules import Scheduled, kernels_of
from benchmarks.gpu_accesses import accesses, grids
from benchmarks.gpu_traffic import Traffic, flat, seconds_of, traffic
from optimizer.gpus import GPUS, Gpu

A100 = GPUS["sm_80"]
SMALL = dataclasses.replace(A100, multiprocessors=1, threads_each=64, l2_bytes=16 << 10)
"""One block of 64 threads at a time, and a cache that keeps 12 KiB."""
RESOURCES = [{"registers": 32, "shared_bytes": 0}]


def copied(blocks: int, index: object, size: int, turns: int = 1, limit: int | None = None) -> tirx.PrimFunc:
    """`y[index] = x[index]` by blocks of 64 threads."""
    x, y = (tirx.decl_buffer([i64(size)], "float32", name) for name in "xy")

    def body(block: Ids, thread: Ids) -> Stmt:
        stores = [
            BufferStore(y, BufferLoad(x, [place]), [place])
            for turn in range(turns)
            for place in [index(block[0], thread[0], turn)]  # type: ignore[operator]
        ]
        own: Stmt = sequence(stores)
        return own if limit is None else IfThenElse(thread[0] < limit, own, None)

    function = tirx.PrimFunc([x, y], tirx.Evaluate(tirx.const(0, "int32")))
    return flat(scheduled(function, [Launch("copy", (i64(blocks), i64(1), i64(1)), (64, 1, 1), body)]), target())


def target() -> tvm.target.Target:
    return cuda_target(A100)


def counted(function: tirx.PrimFunc, gpu: Gpu = SMALL) -> Traffic:
    return traffic(function, RESOURCES, gpu, {})


def side_by_side(block: Expr, thread: Expr, _turn: int) -> Expr:
    return block * 64 + thread


def test_neighbours_are_asked_for_once() -> None:
    found = counted(copied(8, side_by_side, 512))
    assert found == Traffic(1, 8, 2 * 512 * 4, 2 * 512 * 4, unknown=False)


def test_elements_far_apart_take_a_sector_each() -> None:
    found = counted(copied(8, lambda block, thread, _: thread * 8 + block, 512))
    assert found.requested_bytes == 2 * 512 * 32
    assert found.memory_bytes == 2 * 64 * 32  # the 64 sectors of x, and of y, stay in the cache


def test_what_a_statement_reads_twice_counts_once() -> None:
    x, y = (tirx.decl_buffer([i64(64)], "float32", name) for name in "xy")

    def body(_block: Ids, thread: Ids) -> Stmt:
        own, next_ = (BufferLoad(x, [place]) for place in (thread[0], (thread[0] + 32) % 64))
        return BufferStore(y, own * own + next_, [thread[0]])

    launch = Launch("square", (i64(1), i64(1), i64(1)), (64, 1, 1), body)
    function = tirx.PrimFunc([x, y], tirx.Evaluate(tirx.const(0, "int32")))
    assert counted(flat(scheduled(function, [launch]), target())).requested_bytes == 3 * 64 * 4


def test_what_is_not_executed_does_not_count() -> None:
    found = counted(copied(8, side_by_side, 512, limit=16))
    assert found.requested_bytes == found.memory_bytes == 2 * 8 * 16 * 4


@pytest.mark.parametrize(("size", "times"), [(1024, 1), (8192, 2)])
def test_the_cache_keeps_what_fits(size: int, times: int) -> None:
    blocks = size // 64
    found = counted(copied(2 * blocks, lambda block, thread, _: block % blocks * 64 + thread, size))
    assert found.requested_bytes == 2 * 2 * size * 4
    assert found.memory_bytes == times * 2 * size * 4  # 8 KiB of x and y stay, 64 KiB do not


def test_a_place_that_depends_on_data_is_said_to_be_unknown() -> None:
    x = tirx.decl_buffer([i64(64)], "float32", "x")
    which = tirx.decl_buffer([i64(64)], "int64", "which")

    def body(_block: Ids, thread: Ids) -> Stmt:
        return BufferStore(x, tirx.const(0.0, "float32"), [BufferLoad(which, [thread[0]])])

    launch = Launch("scatter", (i64(1), i64(1), i64(1)), (64, 1, 1), body)
    function = tirx.PrimFunc([which, x], tirx.Evaluate(tirx.const(0, "int32")))
    found = counted(flat(scheduled(function, [launch]), target()))
    assert found.unknown
    assert found.requested_bytes == 64 * 8 + 64 * 32


def product(rows: int, columns: int, depth: int) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["": 21]> g (float[{rows},{depth}] x) => (float[{rows},{columns}] y)'
    model = onnx.parser.parse_model(text + " { y = MatMul(x, w) }")
    weights = np.ones((depth, columns), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return ShapeInferencePass()(ir.from_proto(model)).model


def test_a_product_moves_its_minimum_and_asks_for_what_its_tiles_say() -> None:
    rows, columns, depth = 256, 192, 320
    kernels = kernels_of(product(rows, columns, depth), A100)
    (name,) = [each for each, f in kernels.functions.items() if kind_of(f) == "matmul"]
    function = flat(kernels.scheduled[name], target())
    found = traffic(function, RESOURCES, A100, {})
    row = described(name, kernels, Scheduled(moved=found), None)
    least = 4 * (rows * depth + depth * columns + rows * columns)
    assert row.minimum == found.memory_bytes == least
    assert row.shape == f"{rows} x {columns} x {depth}"
    (grid,) = grids(function, {})
    loads = [a for a in accesses(grid, np.arange(grid.blocks), {}) if not a.store]
    asked = sum(float(a.mask.sum()) * a.times * a.bytes for a in loads)
    assert found.requested_bytes == asked + 4 * rows * columns  # in whole sectors
    tile = best_tile(Sizes(1, rows, columns, depth), A100)
    assert asked == 4 * rows * columns * depth * (1 / tile.rows + 1 / tile.columns)


def test_the_time_is_what_takes_longest() -> None:
    bytes_ = A100.memory_bytes_a_second * 1e-3
    moved = Traffic(2, 108, 0.0, bytes_, unknown=False)
    assert seconds_of(moved, 0.0, "float32", A100) == pytest.approx(1e-3 + 2 * A100.launch_seconds)
    alone = Traffic(1, 1, 0.0, 0.0, unknown=False)  # on one multiprocessor of 108
    assert seconds_of(alone, 19.5e9, "float32", A100) == pytest.approx(108e-3 + A100.launch_seconds)
