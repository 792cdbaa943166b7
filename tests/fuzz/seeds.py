"""Small valid models that mutations start from: each has something that a reader of models can get wrong."""

from __future__ import annotations

import functools

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_TEXTS = {
    "mlp": """
        <ir_version: 8, opset_import: ["" : 17]>
        mlp (float[N, 8] x) => (float[N, 4] y) <float[8, 16] w1, float[16] b1, float[16, 4] w2> {
            h = MatMul (x, w1)
            hb = Add (h, b1)
            r = Relu (hb)
            y = MatMul (r, w2)
        }""",
    "conv": """
        <ir_version: 7, opset_import: ["" : 11]>
        conv (float[1, 3, 16, 16] x) => (float[1, 5] y)
        <float[4, 3, 3, 3] w, float[4] s, float[4] b, float[4] m, float[4] v, float[5, 4] fc> {
            c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)
            n = BatchNormalization <epsilon = 0.001> (c, s, b, m, v)
            r = Relu (n)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
            g = GlobalAveragePool (p)
            f = Flatten <axis = 1> (g)
            y = Gemm <transB = 1> (f, fc)
        }""",
    "attention": """
        <ir_version: 10, opset_import: ["" : 23]>
        attention (float[B, S, 8] q, float[B, S, 8] k, float[B, S, 8] v) => (float[B, S, 8] y) {
            y = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (q, k, v)
        }""",
    "shapes": """
        <ir_version: 8, opset_import: ["" : 13]>
        shapes (float[N, 4, 6] x) => (float[N, 6, 4] y) <int64[1] zero = {0}, int64[1] one = {1}> {
            t = Transpose <perm = [0, 2, 1]> (x)
            s = Shape (x)
            n = Slice (s, zero, one)
            f = Constant <value_ints = [6, 4]> ()
            target = Concat <axis = 0> (n, f)
            y = Reshape (t, target)
        }""",
    "branch": """
        <ir_version: 8, opset_import: ["" : 16]>
        branch (float[2, 3] x, bool flag) => (float[2, 3] y) {
            y = If (flag) <
                then_branch = yes () => (float[2, 3] a) { a = Exp (x) },
                else_branch = no () => (float[2, 3] b) { b = Neg (x) }
            >
        }""",
    "loop": """
        <ir_version: 8, opset_import: ["" : 16]>
        loop (float[3] x, int64 trips) => (float[3] y, float[K, 3] all) {
            go = Constant <value = bool {1}> ()
            y, all = Loop (trips, go, x) <
                body = step (int64 i, bool c, float[3] state) => (bool c2, float[3] next, float[3] seen) {
                    c2 = Identity (c)
                    next = Add (state, x)
                    seen = Identity (next)
                }
            >
        }""",
    "function": """
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        uses (float[N, 4] x) => (float[N, 4] y) { h = local.gate <alpha = 0.5> (x) y = local.gate <alpha = 2.0> (h) }
        <domain: "local", opset_import: ["" : 17]>
        gate <alpha> (a) => (b) {
            e = Elu <alpha : float = @alpha> (a)
            b = Mul (a, e)
        }""",
    "quantized": """
        <ir_version: 8, opset_import: ["" : 13]>
        quantized (float[2, 4] x) => (float[2, 3] y) <float scale = {0.1}, uint8 zero = {128}, float[4, 3] w> {
            q = QuantizeLinear (x, scale, zero)
            d = DequantizeLinear (q, scale, zero)
            y = MatMul (d, w)
        }""",
    "old": """
        <ir_version: 3, opset_import: ["" : 7]>
        old (float[2, 6] x, int64[2] shape, int64[2] back) => (float[2, 6] y)
        <int64[2] shape = {3, 4}, int64[2] back = {2, 6}> {
            a, b = Split <axis = 1, split = [2, 4]> (x)
            c = Concat <axis = 1> (b, a)
            d = Dropout <ratio = 0.5> (c)
            r = Reshape (d, shape)
            s = Softmax <axis = 1> (r)
            q = Squeeze (s)
            u = Unsqueeze <axes = [0]> (q)
            y = Reshape (u, back)
        }""",
    "sequence": """
        <ir_version: 8, opset_import: ["" : 17]>
        sequence (float[4, 6] x) => (float[4, 6] y) {
            two = Constant <value = int64 {2}> ()
            s = SplitToSequence <axis = 0> (x, two)
            y = ConcatFromSequence <axis = 0> (s)
        }""",
    "reduce": """
        <ir_version: 8, opset_import: ["" : 18]>
        reduce (float[N, 5, 7] x) => (float[N, 5] y, int64[N, 1] where_it_is)
        <int64[1] axes = {2}, int64[1] k = {1}, float[5] gamma> {
            m = ReduceMean <keepdims = 0> (x, axes)
            l = LayerNormalization <axis = -1> (m, gamma)
            gamma2 = Cast <to = 1> (k)
            y = Add (l, gamma2)
            top, where_it_is = TopK (y, k)
        }""",
}


def _parsed(text: str) -> onnx.ModelProto:
    """A model from its text, with random values for the float tensors that the text declares without any."""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for info in model.graph.value_info:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        values = random.uniform(0.1, 1.0, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, info.name))
    del model.graph.value_info[:]
    return model


def _lstm() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    weights = {"w": (1, 16, 3), "r": (1, 16, 4), "b": (1, 32)}
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", *weights], ["y", "h"], hidden_size=4)],
        "lstm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["S", 2, 3])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["S", 1, 2, 4]),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 2, 4]),
        ],
        [numpy_helper.from_array(random.normal(size=s).astype(np.float32), n) for n, s in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


@functools.cache
def seeds() -> dict[str, bytes]:
    """The serialized models by name."""
    models = {name: _parsed(text) for name, text in _TEXTS.items()} | {"lstm": _lstm()}
    return {name: model.SerializeToString(deterministic=True) for name, model in models.items()}
