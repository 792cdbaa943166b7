"""What the tile model says of kernels: counts that can be done by hand, and sizes that only a run knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.relax.executable import RelaxExecutable, load_executable
from backends.relax.forecast import CALL_SECONDS, Conditions, forecast, sizes_of_call
from backends.relax.plan import Work
from backends.relax.size_value import evaluate
from optimizer.cpus import CPUS
from optimizer.executable import Part
from optimizer.peaks import Peaks, read_bandwidth
from tests.backends.emitted import normal
from tests.backends.four_bits import quantized
from tests.backends.running import Array, compiled, parse

TARGET = "cpu:x86-64-v3"
HERE = Conditions(CPUS["x86-64-v3"], Peaks(32 * 3e9, 20e9), 1, 0)
"""One core of 3 GHz with 32 operations a cycle."""
COUNTS = ("flops", "cycles", "near", "far", "weights", "data", "tasks")


def works(body: str, weights: Mapping[str, Array] | None = None, target: str = TARGET) -> list[Work]:
    """What the kernels of a model have to do, in order."""
    executable = compiled(parse(body, dict(weights or {})), target)
    assert isinstance(executable, RelaxExecutable)
    return list(executable._plan.work.values())


def counts(work: Work, shapes: Sequence[Sequence[int]] = ()) -> dict[str, int]:
    """All amounts, for a call with arguments of these shapes."""
    sizes = sizes_of_call(work, shapes)
    return {name: evaluate(getattr(work, name), sizes) for name in COUNTS}


def test_a_matrix_product_counts_its_multiplications_and_reads_each_weight_once() -> None:
    (work,) = works("g (float[96,200] x) => (float[96,64] y) { y = MatMul(x, w) }", {"w": normal(200, 64)})
    found = counts(work)
    assert found["flops"] == 2 * 96 * 200 * 64
    assert 4 * 200 * 64 <= found["weights"] <= 1.3 * 4 * 200 * 64  # the last panel is filled up with zeros
    assert found["data"] == 4 * (96 * 200 + 96 * 64)
    fewest = 96 * 200 * 64 / 8 / 2  # two pipes of eight lanes
    assert fewest < found["cycles"] < 1.7 * fewest
    assert found["tasks"] > 1


@pytest.mark.parametrize("rows", ["1", "2", "96", "m"])
def test_weights_of_four_bits_count_as_half_a_byte(rows: str) -> None:
    weight = quantized(256, 128, 32)
    text = f"g (float[{rows},256] x) => (float[{rows},128] y) {{ {weight.node} y = MatMul(x, d) }}"
    (work,) = works(text, weight.initializers)
    number = 40 if rows == "m" else int(rows)
    found = counts(work, [[number, 256]])
    assert found["flops"] == 2 * number * 256 * 128
    assert found["weights"] == 256 * 128 // 2 + 8 * 128 * 4
    fewest = number * 256 * 128 / 8 / 2
    assert fewest < found["cycles"] < 6 * fewest + 256 * 128


def test_the_example_of_the_documentation() -> None:
    body = "g (float[128,768] x) => (float[128,3072] y) { y = MatMul(x, w) }"
    (work,) = works(body, {"w": np.zeros((768, 3072), np.float32)}, "cpu:znver5")
    found = counts(work)
    assert found["cycles"] == 32 * 384 * 768 + 24_576 + 36_864 == 9_498_624
    assert found["near"] == pytest.approx(314e6, rel=1e-3)
    assert found["far"] == 0
    assert found["weights"] == 4 * 768 * 3072


def test_small_products_are_one_task() -> None:
    (work,) = works("g (float[4,8] x) => (float[4,8] y) { y = MatMul(x, w) }", {"w": normal(8, 8)})
    assert counts(work)["tasks"] == 1


def test_a_tail_is_counted_with_the_product() -> None:
    weights = {"w": normal(200, 64), "b": normal(64)}
    (plain,) = works("g (float[96,200] x) => (float[96,64] y) { y = MatMul(x, w) }", {"w": weights["w"]})
    body = "g (float[96,200] x) => (float[96,64] y) { m = MatMul(x, w) s = Add(m, b) y = Tanh(s) }"
    (tail,) = works(body, weights)
    assert counts(tail)["flops"] > counts(plain)["flops"] + 96 * 64 * 10
    assert counts(tail)["cycles"] > counts(plain)["cycles"]
    assert counts(tail)["data"] == counts(plain)["data"] + 4 * 64


def test_a_convolution_counts_its_window() -> None:
    body = "g (float[1,16,20,20] x) => (float[1,32,10,10] y) { y = Conv<pads=[2,2,2,2], strides=[2,2]>(x, w) }"
    heavy = max((counts(w) for w in works(body, {"w": normal(32, 16, 5, 5)})), key=lambda c: c["flops"])
    assert heavy["flops"] == 2 * 10 * 10 * 32 * 16 * 25
    assert 4 * 32 * 16 * 25 <= heavy["weights"] <= 1.6 * 4 * 32 * 16 * 25
    fewest = heavy["flops"] / 2 / 8 / 2
    assert fewest < heavy["cycles"] < 2 * fewest


def test_a_depthwise_convolution_counts_one_channel_each() -> None:
    body = "g (float[1,32,20,20] x) => (float[1,32,20,20] y) { y = Conv<pads=[1,1,1,1], group=32>(x, w) }"
    heavy = max((counts(w) for w in works(body, {"w": normal(32, 1, 3, 3)})), key=lambda c: c["flops"])
    assert heavy["flops"] == 2 * 20 * 20 * 32 * 9


def test_winograd_counts_what_it_does_and_not_what_it_saves() -> None:
    body = "g (float[1,64,56,56] x) => (float[1,64,56,56] y) { y = Conv<pads=[1,1,1,1]>(x, w) }"
    heavy = max((counts(w) for w in works(body, {"w": normal(64, 64, 3, 3)})), key=lambda c: c["flops"])
    assert heavy["flops"] == 2 * 14 * 14 * 36 * 64 * 64
    assert heavy["weights"] == 36 * 64 * 64 * 4


def test_attention_counts_both_products_and_half_of_them_under_a_causal_mask() -> None:
    def attention(causal: int) -> dict[str, int]:
        shape = "float[1,4,256,64]"
        body = f"g ({shape} q, {shape} k, {shape} v) => ({shape} y) {{ y = Attention<is_causal={causal}>(q, k, v) }}"
        return max((counts(w) for w in works(body)), key=lambda c: c["flops"])

    full, causal = attention(0), attention(1)
    assert full["flops"] == 2 * 4 * 256 * 256 * 128
    assert 0.5 < causal["flops"] / full["flops"] < 0.65
    assert 0.5 < causal["cycles"] / full["cycles"] < 0.7


def test_light_kernels_count_bytes_and_arithmetic() -> None:
    (work,) = works("g (float[64,100] x, float[100] b) => (float[64,100] y) { s = Add(x, b) y = Mul(s, x) }")
    found = counts(work)
    assert found["flops"] == 2 * 64 * 100
    assert found["data"] == 4 * (64 * 100 * 2 + 100)
    assert found["weights"] == 0


def test_of_a_slice_only_what_is_read_counts() -> None:
    (work,) = works(
        "g (float[1000,64] x) => (float[10,64] y) { y = Slice(x, a, b) }", {"a": np.array([5]), "b": np.array([15])}
    )
    assert counts(work)["data"] == 2 * 4 * 10 * 64


def test_elements_far_apart_cost_more_than_neighbours() -> None:
    (copied,) = works("g (float[512,512] x) => (float[512,512] y) { y = Neg(x) }")
    (turned,) = works("g (float[512,512] x) => (float[512,512] y) { y = Transpose<perm=[1,0]>(x) }")
    assert counts(turned)["cycles"] > 4 * counts(copied)["cycles"]


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        ("g (float[{n},96] x) => (float[{n},64] y) {{ y = MatMul(x, w) }}", {"w": (96, 64)}),
        ("g (float[{n},100] x) => (float[{n},100] y) {{ y = Softmax(x) }}", {}),
        ("g (float[{n},100] x) => (float[{n},100] y) {{ y = Gelu(x) }}", {}),
        ("g (float[{n},8,64] x) => (float[{n},8,64] y) {{ y = Relu(x) }}", {}),
    ],
)
def test_symbolic_sizes_are_known_to_a_run(body: str, shapes: dict[str, tuple[int, ...]]) -> None:
    weights = {name: normal(*shape) for name, shape in shapes.items()}
    symbolic, fixed = (works(body.format(n=n), weights) for n in ("n", "384"))
    assert len(symbolic) == len(fixed) == 1
    found = counts(symbolic[0], [[384 if isinstance(d, str) else d for d in s] for s in symbolic[0].arguments])
    expected = counts(fixed[0])
    for name in COUNTS:
        assert found[name] == pytest.approx(expected[name], rel=0.15, abs=2), name


def test_a_kernel_that_is_called_with_several_sizes_is_predicted_for_each() -> None:
    body = "g (float[n,512] x, float[m,512] z) => (float[n,512] y, float[m,512] w) { y = Gelu(x) w = Gelu(z) }"
    executable = compiled(parse(body))
    rows = [r for r in executable.profile([normal(8, 512), normal(800, 512)], 1, 1) if r.forecast is not None]
    assert sum(row.calls for row in rows) == 2
    total = sum(row.forecast.bytes for row in rows if row.forecast is not None)
    assert total == pytest.approx(2 * 4 * 808 * 512, rel=0.01)


def test_predictions_survive_saving(tmp_path: Path) -> None:
    executable = compiled(parse("g (float[64,512] x) => (float[64,512] y) { y = Exp(x) }"))
    loaded = load_executable("cpu", _written(executable.parts(), tmp_path), executable.manifest())
    (row,) = (r for r in loaded.profile([normal(64, 512)], 1, 3) if r.forecast is not None)
    assert row.forecast is not None
    assert row.forecast.bytes == 2 * 4 * 64 * 512
    assert 0 < row.forecast.share(row.seconds) < 2


def _written(parts: dict[str, Part], folder: Path) -> dict[str, Path]:
    for name, part in parts.items():
        (folder / name).write_bytes(part.read_bytes() if isinstance(part, Path) else bytes(part))
    return {name: folder / name for name in parts}


def work(**changes: int) -> Work:
    """A kernel that does nothing but what is given."""
    nothing = Work([], 0, 0, 0, 0, 0, 0, 1)
    return replace(nothing, **changes)  # type: ignore[arg-type]


def test_the_slowest_of_arithmetic_and_traffic_counts() -> None:
    base = forecast(work(), {}, HERE).seconds
    assert base == CALL_SECONDS
    assert forecast(work(cycles=3_000_000), {}, HERE).seconds - base == pytest.approx(1e-3)
    near = 3_000_000 * 32
    assert forecast(work(near=near), {}, HERE).seconds - base == pytest.approx(1e-3)
    assert forecast(work(near=near, cycles=1_000_000), {}, HERE).seconds - base == pytest.approx(1e-3)
    assert forecast(work(far=3_000_000 * 12), {}, HERE).seconds - base == pytest.approx(1e-3)
    assert forecast(work(data=3_000_000 * 5), {}, HERE).seconds - base == pytest.approx(1e-3)


def test_what_bounds_depends_on_where_the_bytes_are() -> None:
    arithmetic = forecast(work(flops=96_000_000, data=1000), {}, HERE)
    assert arithmetic.bound == "arithmetic"
    assert arithmetic.limit == pytest.approx(1e-3)
    assert arithmetic.share(2e-3) == pytest.approx(0.5)
    sizes = {"L2": 100_000, "L3": 2_000_000, "memory": 50_000_000}
    assert [forecast(work(data=size), {}, HERE).bound for size in sizes.values()] == list(sizes)
    assert forecast(work(weights=100_000), {}, HERE).bound == "L3"
    large = replace(HERE, weight_bytes=1 << 30)
    assert forecast(work(weights=100_000), {}, large).bound == "memory"


def test_tasks_that_do_not_divide_by_the_threads_leave_some_idle() -> None:
    two = replace(HERE, threads=2)
    one_task = forecast(work(cycles=3_000_000), {}, two).seconds
    even, odd = (forecast(work(cycles=3_000_000, tasks=n), {}, two).seconds for n in (2, 3))
    assert even < odd < one_task
    assert (odd - (even - 0.5e-3)) == pytest.approx(1e-3 * 2 / 3)


def test_the_bandwidth_is_measured_once() -> None:
    assert read_bandwidth(1) > 1e9
    assert read_bandwidth(1) == read_bandwidth(1)
    assert HERE.peaks.roof(1.0) == 20e9
    assert HERE.peaks.roof(1e9) == HERE.peaks.flops
