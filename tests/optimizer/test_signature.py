"""What a caller may give to a compiled model, and what is refused with which words."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from optimizer.errors import InputError
from optimizer.executable import TensorSpec
from optimizer.signature import bind, to_torch

IMAGE = TensorSpec("image", "float32", ("batch", 3, None))
LABEL = TensorSpec("label", "int64", ("batch",))
SPECS = (IMAGE, LABEL)
PIXELS = np.ones((2, 3, 4), np.float32)
LABELS = np.array([1, 2])


def one(dtype: str, given: Any, shape: tuple[int | str | None, ...] | None = None) -> Any:
    (array,) = bind([TensorSpec("x", dtype, shape)], [given], {})
    return array


def test_by_position_by_name_and_by_one_mapping() -> None:
    for args, kwargs in [
        ((PIXELS, LABELS), {}),
        ((PIXELS,), {"label": LABELS}),
        ((), {"label": LABELS, "image": PIXELS}),
        (({"label": LABELS, "image": PIXELS},), {}),
        ((UserDict(label=LABELS),), {"image": PIXELS}),
    ]:
        image, label = bind(SPECS, args, kwargs)
        assert image is PIXELS
        assert label is LABELS


def test_a_fitting_array_and_a_fitting_tensor_are_not_copied() -> None:
    assert one("float32", PIXELS) is PIXELS
    tensor = torch.ones(2, 3, requires_grad=True)
    assert one("float32", tensor).ctypes.data == tensor.data_ptr()
    small = torch.ones(4, dtype=torch.bfloat16)
    given = one("bfloat16", small)
    assert given.dtype == ml_dtypes.bfloat16
    assert given.ctypes.data == small.data_ptr()


@pytest.mark.parametrize(
    ("dtype", "given"),
    [
        ("float32", PIXELS.T),
        ("float32", torch.ones(3, 4).t()),
        ("float32", PIXELS.astype(">f4")),
        ("float64", PIXELS),
        ("float32", PIXELS.astype(np.float16)),
        ("int64", LABELS.astype(np.int32)),
        ("int64", LABELS.astype(np.uint8)),
        ("complex64", torch.ones(2, dtype=torch.complex64).conj()),
    ],
    ids=range(8),
)
def test_what_loses_nothing_is_converted(dtype: str, given: Any) -> None:
    array = one(dtype, given)
    assert array.dtype == np.dtype(dtype)
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, np.asarray(given.resolve_conj() if hasattr(given, "is_conj") else given))


@pytest.mark.parametrize(
    ("dtype", "given", "name"),
    [
        ("float32", PIXELS.astype(np.float64), "float64"),
        ("float32", LABELS, "int64"),
        ("float64", LABELS, "int64"),
        ("int64", PIXELS, "float32"),
        ("int32", LABELS, "int64"),
        ("int64", LABELS.astype(np.uint64), "uint64"),
        ("uint8", LABELS.astype(np.int8), "int8"),
        ("bool", LABELS, "int64"),
        ("float32", np.array([True]), "bool"),
        ("int64", torch.tensor([1.0]), "float32"),
        ("float32", np.array(["a"]), "str32"),
        ("string", PIXELS, "float32"),
        ("float32", torch.ones(1, dtype=torch.bfloat16), "bfloat16"),
        ("int64", [1.5], "float64"),
        ("float32", [True], "bool"),
        ("bool", [1], "int64"),
        ("string", [1], "int64"),
        ("float32", "text", "str128"),
    ],
)
def test_what_could_change_a_value_is_refused(dtype: str, given: Any, name: str) -> None:
    with pytest.raises(InputError, match=f"input 'x' must be of type {dtype}, not {name}: convert it first"):
        one(dtype, given)


@pytest.mark.parametrize(
    ("dtype", "given", "expected"),
    [
        ("float32", 3, np.array(3, np.float32)),
        ("float32", [0.1, 2], np.array([0.1, 2], np.float32)),
        ("int32", [[1, 2]], np.array([[1, 2]], np.int32)),
        ("bool", [True, False], np.array([True, False])),
        ("float32", [], np.zeros(0, np.float32)),
        ("bfloat16", [1.5], np.array([1.5], ml_dtypes.bfloat16)),
        ("string", ["a", "bc"], np.array(["a", "bc"], object)),
    ],
)
def test_python_numbers_and_lists_take_the_declared_type(dtype: str, given: Any, expected: np.ndarray) -> None:
    array = one(dtype, given)
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


def test_nan_is_allowed() -> None:
    assert np.isnan(one("float32", np.array([np.nan], np.float32)))[0]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, r"missing input image: float32\[batch, 3, \?\], label: int64\[batch\]"),
        ((PIXELS,), {}, r"missing input label: int64\[batch\]"),
        ((PIXELS, LABELS, LABELS), {}, "3 inputs were given, the model takes 2: image"),
        ((PIXELS, LABELS), {"size": 3}, "unknown input 'size'; the model takes image"),
        ((PIXELS, LABELS), {"label": LABELS}, "input 'label' was given twice"),
        ((PIXELS[0], LABELS), {}, r"input 'image' must have 3 dimensions \[batch, 3, \?\], its shape is \(3, 4\)"),
        ((PIXELS[:, :2], LABELS), {}, r"'image' must have shape \[batch, 3, \?\], not \(2, 2, 4\): axis 1 is fixed"),
        ((PIXELS, LABELS[:1]), {}, "dimension 'batch' is 2 in input 'image' but 1 in input 'label'"),
        ((torch.ones(2, 3, 4, device="meta"), LABELS), {}, "one is without data .its device is 'meta'.: give it data"),
        ((torch.ones(2, 3, 4).to_sparse(), LABELS), {}, r"one is in torch.sparse_coo: .* call to_dense\(\)"),
        ((object(), LABELS), {}, "input 'image' must be an array or a tensor, not object"),
        ((None, LABELS), {}, "input 'image' must be an array or a tensor, not NoneType"),
        (([[1.0], [1.0, 2.0]], LABELS), {}, "input 'image': the nested lists are of unequal length"),
        ((PIXELS, [2**70, 1]), {}, "input 'label'"),
    ],
)
def test_a_wrong_call_is_refused_in_words_of_the_signature(
    args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        bind(SPECS, args, kwargs)
    assert isinstance(caught.value, ValueError)


def test_a_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="input 'x': its numbers do not fit in int8"):
        one("int8", [1, 300])
    with pytest.raises(InputError, match="input 'x': its numbers do not fit in uint8"):
        one("uint8", -1)


def test_sequences_and_optionals_are_passed_on() -> None:
    sequence, optional = TensorSpec("s", "seq(tensor(float))", None), TensorSpec("o", "optional(tensor(float))", None)
    items, absent = bind([sequence, optional], [[PIXELS.T, torch.ones(2)]], {})
    assert absent is None
    assert [item.shape for item in items] == [(4, 3, 2), (2,)]
    assert all(item.flags.c_contiguous for item in items)
    (given,) = bind([optional], [PIXELS], {})
    np.testing.assert_array_equal(given, PIXELS)
    with pytest.raises(InputError, match="input 's' must be a list of arrays, not ndarray"):
        bind([sequence], [PIXELS], {})
    with pytest.raises(InputError, match="input 's' must be a list of arrays, not None"):
        bind([sequence], [None], {})


def test_results_become_tensors_over_the_same_memory() -> None:
    tensor = to_torch(PIXELS)
    assert tensor.data_ptr() == PIXELS.ctypes.data
    small = np.array([1.5], ml_dtypes.bfloat16)
    assert to_torch(small).dtype == torch.bfloat16
    assert to_torch(small).item() == 1.5
    assert isinstance(to_torch([PIXELS])[0], torch.Tensor)
    strings = np.array(["a"], object)
    assert to_torch(strings) is strings
    assert to_torch(None) is None
