"""The benchmark of symbolic sizes: which sizes it compares at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.export import arrays
from benchmarks.symbolic import OTHERS, SYMBOLIC, resized
from models import ModelCase


@pytest.mark.parametrize("name", SYMBOLIC)
def test_other_sizes_are_of_the_open_axes(name: str) -> None:
    assert OTHERS[name]
    assert all(len(sizes) == len(SYMBOLIC[name]) for sizes in OTHERS[name])


def test_an_example_of_other_sizes_repeats_its_own_elements() -> None:
    case = ModelCase("m", torch.nn.Identity(), (torch.arange(6).reshape(1, 2, 3),))
    (array,) = arrays(resized(case, (0, 2), (2, 4)))
    assert array.shape == (2, 2, 4)
    assert array.dtype == np.int64
    assert set(array.reshape(-1)) == set(range(6))


def test_inputs_by_name_keep_their_names() -> None:
    case = ModelCase("m", Path("m.onnx"), {"x": np.ones((1, 3), np.float32)})
    other = resized(case, (0,), (4,)).example_inputs
    assert isinstance(other, dict)
    assert other["x"].shape == (4, 3)
