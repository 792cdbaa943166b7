"""Winograd's method for 3 x 3 convolutions: its matrices, edges, blocks and panels, and what it leaves alone."""

import numpy as np
import onnx
import pytest

from backends.cpu.tiles import Tiles
from backends.relax.packing import winograd_panels
from backends.relax.values import ConvShape
from backends.relax.winograd import FILTER_MATRIX, OUT, OUTPUT_MATRIX, PATCH, PATCH_MATRIX, TAPS
from optimizer.executable import Executable
from optimizer.target import CPUS
from tests.backends.running import check, compiled, parse

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model(
    x: tuple[int | str, ...], w: tuple[int, ...], attributes: str = "pads=[1,1,1,1]", dtype: str = "float"
) -> onnx.ModelProto:
    shape = ",".join(map(str, x))
    text = f"""g ({dtype}[{shape}] x) => ({dtype}[n,c,oh,ow] y) {{
        t = Conv<{attributes}>(x, w, b) y = Relu(t) }}"""
    element = np.float32 if dtype == "float" else np.float64
    return parse(text, {"w": normal(*w).astype(element), "b": normal(w[0]).astype(element)})


def kernels(executable: Executable, x: np.ndarray) -> list[str]:
    return [row.name for row in executable.profile([x], 1, 1)]


def uses_winograd(executable: Executable, x: np.ndarray) -> bool:
    return any("winograd" in name for name in kernels(executable, x))


def test_the_matrices_give_a_convolution() -> None:
    d, g = RNG.standard_normal(PATCH), RNG.standard_normal(TAPS)
    direct = [d[k : k + TAPS] @ g for k in range(OUT)]
    assert np.allclose(OUTPUT_MATRIX @ ((FILTER_MATRIX @ g) * (PATCH_MATRIX @ d)), direct, rtol=1e-12)


@pytest.mark.parametrize("matrix", [OUTPUT_MATRIX, PATCH_MATRIX])
def test_the_constants_of_a_kernel_are_exact(matrix: np.ndarray) -> None:
    assert np.array_equal(matrix, matrix.astype(np.float32))


def test_filters_are_packed_in_panels() -> None:
    filters = normal(40, 8, 3, 3)
    packed = winograd_panels(filters, width=32)
    assert packed.shape == (2, PATCH, PATCH, 8, 32)
    expected = FILTER_MATRIX @ filters[35, 6].astype(np.float64) @ FILTER_MATRIX.T
    assert np.allclose(packed[1, :, :, 6, 3], expected, atol=1e-6)
    assert not packed[1, ..., 8:].any()


@pytest.mark.parametrize(
    ("x", "out", "pads"),
    [
        ((1, 64, 16, 16), 64, (1, 1, 1, 1)),
        ((1, 32, 13, 18), 32, (1, 1, 1, 1)),  # neither side a multiple of a patch
        ((1, 32, 15, 14), 48, (0, 0, 0, 0)),  # no padding, and half a panel at the end
        ((1, 32, 14, 13), 32, (2, 0, 1, 2)),
        ((3, 32, 14, 14), 32, (1, 1, 1, 1)),  # blocks that hold patches of two images
        ((1, 256, 14, 14), 64, (1, 1, 1, 1)),  # the panels are shared out
        ((1, 64, 61, 57), 32, (1, 1, 1, 1)),  # blocks that overlap at the end
        ((1, 64, 21, 30), 24, (1, 1, 1, 1)),  # results that do not fill the last vector
        ((1, 64, 21, 30), 59, (1, 1, 1, 1)),  # nor the last of two panels
        ((1, 64, 16, 16), 7, (1, 1, 1, 1)),
    ],
)
@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3"])
def test_agrees(x: tuple[int, ...], out: int, pads: tuple[int, ...], target: str) -> None:
    graph = model(x, (out, x[1], 3, 3), f"pads=[{','.join(map(str, pads))}]")
    data = normal(*x)
    assert uses_winograd(check(graph, [data], target), data)


@pytest.mark.parametrize("images", [1, 2, 5])
def test_symbolic_batch(images: int) -> None:
    data = normal(images, 32, 14, 15)
    assert uses_winograd(check(model(("n", 32, 14, 15), (32, 32, 3, 3)), [data]), data)


def test_what_follows_is_done_on_the_way_back() -> None:
    text = """g (float[1,32,14,14] x) => (float[1,32,14,14] y) {
        a = Conv<pads=[1,1,1,1]>(x, w, b) b2 = Relu(a) c = Conv<pads=[1,1,1,1]>(b2, w, b) d = Add(c, x) y = Relu(d) }"""
    data = normal(1, 32, 14, 14)
    names = kernels(check(parse(text, {"w": normal(32, 32, 3, 3) * 0.1, "b": normal(32)}), [data]), data)
    assert len([name for name in names if "winograd" in name]) == 2
    assert not [name for name in names if "add" in name and "winograd" not in name]


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((1, 64, 16, 16), (64, 64, 3, 3), "pads=[1,1,1,1], strides=[2,2]"),
        ((1, 64, 16, 16), (64, 64, 3, 3), "pads=[2,2,2,2], dilations=[2,2]"),
        ((1, 64, 16, 16), (64, 32, 3, 3), "pads=[1,1,1,1], group=2"),
        ((1, 64, 16, 16), (64, 64, 5, 5), "pads=[2,2,2,2]"),
        ((1, 64, 16, 16), (64, 64, 1, 3), "pads=[0,1,0,1]"),
        ((1, 20, 16, 16), (64, 20, 3, 3), "pads=[1,1,1,1]"),  # channels that do not fill vectors
        ((1, 64, 5, 5), (64, 64, 3, 3), "pads=[1,1,1,1]"),  # patches half empty
    ],
)
def test_other_windows_are_summed_directly(x: tuple[int, ...], w: tuple[int, ...], attributes: str) -> None:
    data = normal(*x)
    assert not uses_winograd(check(model(x, w, attributes), [data]), data)


@pytest.mark.parametrize(
    ("declared", "size"),
    [
        ((1, 64, "h", "w"), (1, 64, 5, 3)),  # fewer patches than a block has room for
        ((1, 64, "h", "w"), (1, 64, 61, 58)),  # several blocks, the last overlaps
        ((1, 64, "h", "w"), (1, 64, 1, 1)),
        ((2, 32, "h", 15), (2, 32, 30, 15)),  # blocks that hold patches of two images
        (("n", 32, "h", "w"), (3, 32, 14, 13)),
        ((1, 96, "h", "w"), (1, 96, 21, 14)),
        ((1, 96, "h", "w"), (1, 96, 31, 33)),  # blocks that are not full
    ],
)
@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3"])
def test_symbolic_images(declared: tuple[int | str, ...], size: tuple[int, ...], target: str) -> None:
    data = normal(*size)
    graph = model(declared, (24 if size[1] == 96 else 64, size[1], 3, 3))
    assert uses_winograd(check(graph, [data], target), data)


def test_double_precision_is_summed_directly() -> None:
    data = RNG.standard_normal((1, 64, 16, 16))
    executable = compiled(model((1, 64, 16, 16), (64, 64, 3, 3), dtype="double"))
    assert not uses_winograd(executable, data)


def test_large_filters_of_small_images_are_not_read_four_times() -> None:
    tiles = Tiles(CPUS["x86-64-v4"])
    assert tiles.winograd_width(ConvShape(1, 56, 56, 64, 64)) == 32
    assert tiles.winograd_width(ConvShape(1, 7, 7, 512, 512)) is None
    assert tiles.winograd_width(ConvShape(1, None, None, 512, 512)) is None


@pytest.mark.parametrize("cpu", ["generic", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("depth", [16, 64, 512])
def test_blocks_of_symbolically_many_patches_fill_the_cache(cpu: str, depth: int) -> None:
    tiles = Tiles(CPUS[cpu])
    panel = 2 * tiles.lanes()
    blocks, size = tiles.winograd_blocks(None, depth, panel)
    a_patch = 36 * 4 * (depth + panel)
    assert blocks is None
    assert size == 1 or size * a_patch <= 0.7 * tiles.cpu.l2_bytes < (size + 1) * a_patch


@pytest.mark.parametrize("cpu", ["generic", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize(("patches", "depth"), [(1, 16), (16, 256), (49, 128), (196, 64), (1000, 512)])
def test_blocks_cover_the_patches_and_fit_the_cache(cpu: str, patches: int, depth: int) -> None:
    tiles = Tiles(CPUS[cpu])
    blocks, size = tiles.winograd_blocks(patches, depth, 2 * tiles.lanes())
    assert blocks is not None
    assert size <= patches <= blocks * size
    assert size == 1 or 36 * 4 * size * (depth + 2 * tiles.lanes()) <= tiles.cpu.l2_bytes
