"""Resize and sampling: where an output element comes from, in every convention; borders; sizes that are not known."""

import numpy as np
import pytest

from tests.backends.emitted import agrees, emitted, normal, reference
from tests.backends.running import check, parse

COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_conventions_up_and_down(mode: str, coordinates: str) -> None:
    model = parse(
        f'g (float[1,2,5,7] x) => (float[1,2,8,4] y) {{ y = Resize<mode="{mode}",'
        f' coordinate_transformation_mode="{coordinates}">(x, , , s) }}',
        {"s": np.array([1, 2, 8, 4])},
    )
    agrees(model, [normal(1, 2, 5, 7)], atol=1e-5)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_ties_of_the_nearest_element(rounding: str) -> None:
    model = parse(
        f'g (float[1,1,6] x) => (float[1,1,4] y) {{ y = Resize<mode="nearest", nearest_mode="{rounding}",'
        ' coordinate_transformation_mode="asymmetric">(x, , s) }',
        {"s": np.array([1, 1, 0.6666667], np.float32)},
    )
    agrees(model, [normal(1, 1, 6)])


def test_an_axis_of_one_element_by_aligned_corners() -> None:
    model = parse(
        'g (float[1,1,5,5] x) => (float[1,1,1,3] y) { y = Resize<mode="linear",'
        ' coordinate_transformation_mode="align_corners">(x, , , s) }',
        {"s": np.array([1, 1, 1, 3])},
    )
    agrees(model, [normal(1, 1, 5, 5)])


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_keeping_the_aspect_ratio(policy: str) -> None:
    size = "4,5" if policy == "not_larger" else "6,8"
    model = parse(
        f'g (float[1,1,6,8] x) => (float[1,1,{size}] y) {{ y = Resize<mode="linear", axes=[2,3],'
        f' keep_aspect_ratio_policy="{policy}">(x, , , s) }}',
        {"s": np.array([6, 5])},
    )
    wanted = reference(model, [x := normal(1, 1, 6, 8)])
    agrees(model, [x], wanted, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialiasing_is_as_wide_as_the_scale(mode: str) -> None:
    model = parse(
        f'g (float[1,1,9,9] x) => (float[1,1,3,4] y) {{ y = Resize<mode="{mode}", antialias=1>(x, , , s) }}',
        {"s": np.array([1, 1, 3, 4])},
    )
    agrees(model, [normal(1, 1, 9, 9)], atol=1e-5)


def test_weights_outside_are_left_out() -> None:
    model = parse(
        'g (float[1,1,4,4] x) => (float[1,1,7,7] y) { y = Resize<mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1>'
        "(x, , , s) }",
        {"s": np.array([1, 1, 7, 7])},
    )
    agrees(model, [normal(1, 1, 4, 4)], atol=1e-5)


def test_integers_saturate() -> None:
    model = parse(
        'g (uint8[1,1,4] x) => (uint8[1,1,9] y) { y = Resize<mode="cubic">(x, , , s) }', {"s": np.array([1, 1, 9])}
    )
    (y,) = emitted(model, [np.array([[[0, 255, 255, 0]]], np.uint8)])
    assert y.max() == 255
    assert y.min() == 0


def test_regions_are_extrapolated() -> None:
    model = parse(
        'g (float[1,1,5,5] x, float[8] r) => (float[1,1,4,6] y) { y = Resize<mode="linear", extrapolation_value=7.0,'
        ' coordinate_transformation_mode="tf_crop_and_resize">(x, r, , s) }',
        {"s": np.array([1, 1, 4, 6])},
    )
    region = np.array([0, 0, 0.2, 0.5, 1, 1, 0.9, 1.4], np.float32)
    agrees(model, [normal(1, 1, 5, 5), region], atol=1e-5)


def test_symbolic_sizes_double() -> None:
    model = parse(
        'g (float[1,3,h,w] x) => (float[1,4,a,b] y) { t = Conv(x, k) y = Resize<mode="nearest",'
        ' coordinate_transformation_mode="asymmetric", nearest_mode="floor">(t, , s) }',
        {"s": np.array([1, 1, 2, 2], np.float32), "k": normal(4, 3, 1, 1)},
    )
    check(model, [normal(1, 3, 5, 7)])


def test_scales_computed_at_run_time() -> None:
    model = parse('g (float[1,2,4,4] x, float[4] s) => (float[1,2,6,10] y) { y = Resize<mode="linear">(x, , s) }')
    agrees(model, [normal(1, 2, 4, 4), np.array([1, 1, 1.5, 2.5], np.float32)])


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_samples_beyond_the_border(mode: str, padding: str, corners: int) -> None:
    model = parse(
        f'g (float[2,2,4,5] x, float[2,3,3,2] p) => (float[2,2,3,3] y) {{ y = GridSample<mode="{mode}",'
        f' padding_mode="{padding}", align_corners={corners}>(x, p) }}'
    )
    agrees(model, [normal(2, 2, 4, 5), normal(2, 3, 3, 2)], atol=1e-4)


def test_an_affine_grid_of_symbolic_batch() -> None:
    model = parse(
        "g (float[n,2,3] t) => (float[n,4,5,2] y) { y = AffineGrid<align_corners=1>(t, s) }",
        {"s": np.array([3, 1, 4, 5])},
    )
    agrees(model, [normal(3, 2, 3)], atol=1e-5)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "output_half_pixel"])
def test_regions_that_leave_the_image(mode: str, coordinates: str) -> None:
    model = parse(
        f'g (float[2,3,6,6] x, float[3,4] r, int64[3] b) => (float[3,3,2,2] y) {{ y = RoiAlign<mode="{mode}",'
        f" output_height=2, output_width=2, sampling_ratio=2,"
        f' coordinate_transformation_mode="{coordinates}">(x, r, b) }}'
    )
    regions = np.array([[0, 0, 3, 3], [-4, 1, 9, 8], [2, 2, 2.5, 2.2]], np.float32)
    agrees(model, [normal(2, 3, 6, 6), regions, np.array([1, 0, 1])])
