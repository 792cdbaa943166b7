"""convert-float: what becomes of constants and masks."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from optimizer.reference import run_reference
from passes.convert_float import ConvertFloat
from tests.passes.bfloat16_graphs import CONVERT, NARROW, W, converted, dtype, elements
from tests.passes.transform import read

# --- 4. Constants ---


def test_weights_are_rounded_to_the_nearest_and_ties_to_even() -> None:
    values = np.array([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-9, np.inf]], np.float32)
    text = "g (float[N,1] x) => (float[N,4] y) <float[1,4] w> { y = MatMul(x, w) }"
    model = read(text.replace("float[1,4] w", "float[1,4] w = {0,0,0,0}"))
    model.graph.initializers["w"].const_value = ir.tensor(values)
    CONVERT(model)
    np.testing.assert_array_equal(elements(model, "w"), [[1, 1 + 2**-6, -1, np.inf]])


def test_a_large_weight_is_converted_when_it_is_read() -> None:
    model = read("g (float[N,64] x) => (float[N,64] y) <float w = {0}> { y = MatMul(x, w) }")
    weight, value = np.ones((64, 64), np.float32), model.graph.initializers["w"]
    value.const_value, value.shape = ir.tensor(weight), ir.Shape(weight.shape)
    CONVERT(model)
    assert isinstance(value.const_value, ir.LazyTensor)
    assert value.const_value.nbytes == 64 * 64 * 2
    weight[0, 0] = 7  # not read yet
    assert value.const_value.numpy()[0, 0] == 7
    assert value.const_value.numpy().dtype == ml_dtypes.bfloat16


def test_two_names_of_one_tensor_stay_one() -> None:
    model = read(
        f"""g (float[N,4] x) => (float[N,4] y) <{W}, {W.replace("w", "v")}> {{
        a = MatMul(x, w) y = MatMul(a, v) }}"""
    )
    first, second = (model.graph.initializers[name] for name in "wv")
    second.const_value = first.const_value
    CONVERT(model)
    assert first.const_value is second.const_value


def test_a_constant_that_is_read_in_both_types_is_kept_in_both() -> None:
    model = converted(f"""g (float[N,4] x) => (float[N,4] y, float[4,4] z) <{W}> {{
        y = MatMul(x, w) z = Exp(w) }}""")
    assert [tensor.dtype for tensor in model.graph.initializers.values()] == [ir.DataType.FLOAT, NARROW]


def test_a_default_of_an_input_is_no_constant() -> None:
    model = read(f"g (float[N,4] x, {W}) => (float[N,4] y) {{ y = MatMul(x, w) }}")
    CONVERT(model)
    assert [node.op_type for node in model.graph] == ["Cast", "Cast", "MatMul", "Cast"]


def test_the_lowest_number_of_a_mask_stays_finite() -> None:
    """A row that is masked throughout is evenly spread; with infinities it would be NaN."""
    model = converted(f"""g (bool[4,4] m, float[4,4] x) => (float[4,4] y)
        <{W}, float low = {{-3.4028234663852886e38}}, float zero = {{0}}> {{
            a = MatMul(x, w) b = Where(m, zero, low) c = Add(a, b) d = Softmax(c) y = MatMul(d, w) }}""")
    assert np.isfinite(elements(model, "low")).all()


def test_the_lowest_number_stays_finite_when_a_cast_stands_behind_it() -> None:
    low = "float low = {-3.4028234663852886e38}, float zero = {0}"
    model = converted(
        f"""g (bool[4,4] m, float[4,4] x) => (float[4,4] y, float[4,4] z) <{W}, {low}> {{
            b = Where(m, zero, low) z = Exp(b) i = Identity(b)
            a = MatMul(x, w) c = Add(a, i) d = Softmax(c) y = MatMul(d, w) }}""",
        ConvertFloat(keep="Where"),
    )
    assert dtype(model, "b") == ir.DataType.FLOAT
    assert all(np.isfinite(elements(model, name)).all() for name in model.graph.initializers)


def test_the_lowest_number_of_a_mask_that_is_an_input_stays_finite_and_infinity_infinite() -> None:
    model = converted(f"""g (float[4,4] x, float[4] m) => (float[4,4] y) <{W}, int64[1] first = {{0}}> {{
        a = MatMul(x, w) u = Unsqueeze(m, first) b = Add(a, u) c = Softmax(b) y = MatMul(c, w) }}""")
    lowest = np.full(4, np.finfo(np.float32).min)
    x = np.eye(4, dtype=np.float32)
    evenly, nothing = (run_reference(model, [x, mask])[0] for mask in (lowest, np.full(4, -np.inf, np.float32)))
    np.testing.assert_allclose(evenly, np.tile([3, 4, 5, 6], (4, 1)), rtol=0.02)
    assert np.isnan(nothing).all()


def test_an_input_that_is_no_mask_is_only_cast() -> None:
    model = converted(f"""g (float[4,4] x, float[4] m) => (float[4,4] y) <{W}> {{
        a = MatMul(x, w) b = Add(a, m) c = Relu(b) y = MatMul(c, w) }}""")
    assert [node.op_type for node in model.graph] == ["Cast", "Cast", "MatMul", "Add", "Relu", "MatMul", "Cast"]


# --- 5. Masks ---


def test_a_mask_of_an_attention_stays_what_it_is() -> None:
    model = converted("""g (float[1,2,3,4] q, float[3,3] m) => (float[1,2,3,4] y) { y = Attention(q, q, q, m) }""")
    assert [node.op_type for node in model.graph] == ["Cast", "Attention", "Cast"]
    assert model.graph[1].inputs[3] is model.graph.inputs[1]
