"""bfloat16 graphs in runtimes that have none."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from optimizer.ir.widen import has_bfloat16, widened
from optimizer.reference import run_reference
from tests.passes.transform import read

NARROW = ml_dtypes.bfloat16
X = np.linspace(-3, 3, 8, dtype=np.float32).reshape(2, 4)


def rounded(array: np.ndarray | np.float32) -> np.ndarray:
    return np.asarray(array).astype(NARROW).astype(np.float32)


def types(model: ir.Model) -> set[ir.DataType | None]:
    """Of what the nodes give that are no casts."""
    return {value.dtype for node in model.graph if node.op_type != "Cast" for value in node.outputs}


def test_each_result_is_rounded() -> None:
    model = read("""g (float[2,4] x) => (float[2,4] y, bfloat16[2,4] z) {
        a = Cast<to = 16>(x) b = Exp(a) z = Mul(b, b) y = Cast<to = 1>(z) }""")
    assert types(widened(model)) == {ir.DataType.FLOAT}
    y, z = run_reference(model, [X])
    assert z.dtype == NARROW
    expected = rounded(rounded(np.exp(rounded(X))) ** 2)
    np.testing.assert_allclose(y, expected, rtol=2**-7)
    assert np.count_nonzero(y == expected) > 5  # but for the last place of the exponential function itself
    np.testing.assert_array_equal(z.astype(np.float32), y)


def test_without_rounding_it_is_a_float32_model() -> None:
    model = read("""g (float[2,4] x) => (float[2,4] y) {
        a = Cast<to = 16>(x) b = Exp(a) c = Mul(b, b) y = Cast<to = 1>(c) }""")
    (y,) = run_reference(widened(model, rounds=False), [X])
    np.testing.assert_allclose(y, np.exp(X) ** 2, rtol=1e-5)


def test_inputs_and_outputs_keep_their_types_and_weights_their_values() -> None:
    model = read("g (bfloat16[2,4] x) => (bfloat16[2,4] y) { y = Add(x, x) }")
    weight = ir.Value(name="w", const_value=ir.tensor(np.full((2, 4), 0.1, NARROW)))
    model.graph.register_initializer(weight)
    model.graph[0].replace_input_with(1, weight)
    result = widened(model)
    assert [value.dtype for value in (*result.graph.inputs, *result.graph.outputs)] == [ir.DataType.BFLOAT16] * 2
    assert result.graph.outputs[0].name == "y"
    (y,) = run_reference(model, [X.astype(NARROW)])
    np.testing.assert_array_equal(y, (rounded(X) + rounded(np.float32(0.1))).astype(NARROW))


def test_subgraphs_compute_in_float32_throughout() -> None:
    model = read("""g (bfloat16[2,4] x, bool c) => (bfloat16[2,4] y) {
        a = Neg(x)
        y = If (c) <then_branch = t () => (bfloat16[2,4] p) { p = Exp(a) },
                    else_branch = e () => (bfloat16[2,4] q) { q = Neg(a) }> }""")
    (y,) = run_reference(model, [X.astype(NARROW), np.array(False)])
    np.testing.assert_array_equal(y, X.astype(NARROW))


def test_filled_tensors_are_float32() -> None:
    model = read("g (int64[1] n) => (float[M] y) { a = ConstantOfShape(n) b = Cast<to = 16>(a) y = Cast<to = 1>(b) }")
    model.graph[0].attributes["value"] = ir.AttrTensor("value", ir.tensor(np.array([0.1], NARROW)))
    model.graph[0].outputs[0].type = ir.TensorType(ir.DataType.BFLOAT16)
    (y,) = run_reference(model, [np.array([3])])
    np.testing.assert_array_equal(y, np.full(3, 0.1, NARROW).astype(np.float32))


def test_whether_there_is_any() -> None:
    assert has_bfloat16(read("g (bfloat16[2] x) => (bool[2] y) { y = IsNaN(x) }"))
    assert not has_bfloat16(read("g (float[2] x) => (float[2] y) { y = Exp(x) }"))
