"""use-contrib-operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer import optimize
from optimizer.pass_manager import PassManager
from optimizer.testing import check_pass, models
from passes.infer_shapes import InferShapes
from passes.quantize_int4 import QuantizeInt4
from passes.use_contrib_operators import UseContribOperators
from tests.passes.transform import assert_stays, read

CONTRIB = UseContribOperators()
ATTENTION = "Attention<q_num_heads = 2, kv_num_heads = 2{more}>({inputs})"


def kinds(text: str) -> list[str]:
    """What is left of a graph, which computes the same."""
    model = check_pass(CONTRIB, read(text))
    assert model.opset_imports["com.microsoft"] == 1
    return [node.op_type for node in model.graph]


def attention(inputs: str = "q, k, k", more: str = "", given: str = "", keys: str = "K") -> str:
    call = ATTENTION.format(inputs=inputs, more=more)
    return f"g (float[B,3,8] q, float[B,{keys},8] k{given}) => (float[B,3,8] y) {{ y = {call} }}"


def test_gelu() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { y = Gelu(x) }"
    assert kinds(text) == ["Gelu"]
    assert kinds(text.replace("Gelu(", 'Gelu<approximate = "tanh">(')) == ["FastGelu"]
    assert_stays(CONTRIB, text.replace("float[", "double["))


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("LayerNormalization(s, w, w)", "SkipLayerNormalization"),
        ("LayerNormalization<epsilon = 0.5>(s, w)", "SkipLayerNormalization"),
        ("RMSNormalization<axis = 2>(s, w)", "SkipSimplifiedLayerNormalization"),
    ],
)
def test_a_sum_and_its_normalization(norm: str, kind: str) -> None:
    text = f"""g (float[B,3,8] a, float[B,3,8] b) => (float[B,3,8] y) <float[8] w = {{1,2,3,4,5,6,7,8}}> {{
        s = Add(a, b) y = {norm} }}"""
    assert kinds(text) == [kind]
    both = text.replace("(float[B,3,8] y)", "(float[B,3,8] y, float[B,3,8] z)").replace("y = ", "z = Exp(s) y = ")
    assert kinds(both) == [kind, "Exp"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("float[B,3,8] b", "float[8] b"),  # it is stretched
        ("B,3,8", "B,2,3,8"),  # of four axes
        ("(s, w)", "<axis = 1>(s, w2)"),  # over two axes
        ("float[B,3,8] b)", "float[B,3,8] b, float[8] c)"),  # the weight is computed behind the sum
        ("=> (float[B,3,8] y)", "=> (float[B,3,8] y, float[B,3,8] s)"),  # the sum is an output
        ("y = LayerNormalization", "y, z = LayerNormalization"),  # the mean is wanted
        ("float", "double"),
    ],
)
def test_a_sum_that_stays(old: str, new: str) -> None:
    text = """g (float[B,3,8] a, float[B,3,8] b) => (float[B,3,8] y)
        <float[8] w = {1,2,3,4,5,6,7,8}, float[1,1] w2 = {2}> { s = Add(a, b) y = LayerNormalization(s, w) }"""
    changed = text.replace(old, new)
    if "c)" in new:
        changed = changed.replace("y = ", "v = Exp(c) y = ").replace("(s, w)", "(s, v)")
    if "z = " in new:
        changed = changed.replace("(float[B,3,8] y)", "(float[B,3,8] y, float[B,3,1] z)")
    assert_stays(CONTRIB, changed)


def test_rotary_embedding() -> None:
    text = """g (float[B,4,3,8] x, int64[B,3] p) => (float[B,4,3,8] y) <float[1,4] one = {0.1,0.2,0.3,0.4}> {
        n = Mod<fmod = 0>(p, ten) c = Expand(one, size) s = Sin(c) y = RotaryEmbedding(x, c, s, n) }"""
    text = text.replace("<float", "<int64 ten = {10}, int64[2] size = {10,4}, float")
    assert kinds(text)[-1] == "RotaryEmbedding"
    without = (
        "g (float[B,4,3,8] x, float[B,3,4] c, float[B,3,4] s) => (float[B,4,3,8] y) { y = RotaryEmbedding(x, c, s) }"
    )
    assert_stays(CONTRIB, without)


def test_attention() -> None:
    assert kinds(attention()) == ["MultiHeadAttention"]
    assert kinds(attention(more=", scale = 0.3")) == ["MultiHeadAttention"]
    assert kinds(attention(more=", is_causal = 1", keys="3")) == ["MultiHeadAttention"]


@pytest.mark.parametrize("mask", ["3,K", "2,3,K", "1,2,3,K", "B,1,3,K"])
def test_a_mask_of_numbers(mask: str) -> None:
    assert kinds(attention("q, k, k, m", given=f", float[{mask}] m"))[-1] == "MultiHeadAttention"


@pytest.mark.parametrize("mask", ["3,K", "B,1,3,K"])
def test_a_mask_of_truth_values(mask: str) -> None:
    assert kinds(attention("q, k, k, m", given=f", bool[{mask}] m"))[-1] == "Mul"


def test_a_row_that_is_hidden_altogether_gives_zero() -> None:
    text = attention("q, k, k, m", given=", bool[B,1,3,K] m", keys="5").replace("K", "5")
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 3, 8), np.float32), rng.standard_normal((2, 5, 8), np.float32)
    mask = rng.random((2, 1, 3, 5)) < 0.5
    mask[1, 0, 2] = False
    plain, contrib = (
        optimize(read(text), target, cache=False)(q, k, mask) for target in ("onnx", "onnx+com.microsoft")
    )
    assert not contrib[1, 2].any()
    np.testing.assert_allclose(contrib, plain, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        attention().replace("kv_num_heads = 2", "kv_num_heads = 1").replace("[B,K,8]", "[B,K,4]"),
        attention(more=", softcap = 2.0"),
        attention(more=", is_causal = 1"),  # other keys than queries
        attention("q, k, k, m", more=", is_causal = 1", given=", float[3,3] m", keys="3"),
        attention("q, k, k, m", given=", float[1,K] m"),
        attention("q, k, k, m", given=", bool[1,2,3,K] m"),
        attention().replace("float[", "double["),
        attention("q, k, k, , p, p", given=", float[B,2,P,4] p"),
    ],
)
def test_an_attention_that_stays(text: str) -> None:
    assert not CONTRIB(read(text)).modified  # ONNX Runtime does not compute all of these


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("layer", ["MatMul(x, w)", "Gemm(x, w, b)", "Gemm<transB = 1>(x, w, b)", "Gemm(x, w)"])
@pytest.mark.parametrize("depth", [64, 40])
def test_weights_of_four_bits(layer: str, depth: int, *, signed: bool) -> None:
    rng = np.random.default_rng(1)
    shape = (24, depth) if "transB" in layer else (depth, 24)
    weights = {"w": rng.standard_normal(shape), "b": rng.standard_normal(24)}
    names = ", ".join(f"float[{','.join(map(str, array.shape))}] {name}" for name, array in weights.items())
    model = read(f"g (float[N,{depth}] x, {names}) => (float[N,24] y) {{ y = {layer} }}")
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(weights[value.name or ""].astype(np.float32), name=value.name)
        model.graph.register_initializer(value)
    PassManager([QuantizeInt4(block_size=32, symmetric=signed), InferShapes()]).run(model)
    assert any(node.op_type == "DequantizeLinear" for node in model.graph)
    result = check_pass(CONTRIB, model)
    assert [node.op_type for node in result.graph] == ["MatMulNBits"]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(model=models(max_steps=10))
def test_property(model: ir.Model) -> None:
    check_pass(CONTRIB, model)
