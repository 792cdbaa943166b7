"""`python -m tests.gpu.rule_run NAME`: one kernel by a rule, on whatever OpenCL platform the environment names."""

from __future__ import annotations

import sys

import numpy as np

from backends.gpu import attention, depthwise, four_bits, matmul
from optimizer.gpus import GPUS
from tests.backends.running import parse
from tests.gpu.rules import agrees


def attend() -> None:
    """Causal attention of 37 queries and 53 keys."""
    text = """g (float[1,s,32] q, float[1,t,16] k, float[1,t,16] v) => (float[1,s,32] y) {
        y = Attention<q_num_heads = 2, kv_num_heads = 1, is_causal = 1>(q, k, v) }"""
    agrees(parse(text), "attention", attention.lower, {"s": 37, "t": 53})


def attend_in_pieces() -> None:
    """Heads of 260, whose keys and values come in pieces."""
    text = """g (float[1,s,260] q, float[1,t,260] k, float[1,t,260] v) => (float[1,s,260] y) {
        y = Attention<q_num_heads = 1, kv_num_heads = 1>(q, k, v) }"""
    agrees(parse(text), "attention", attention.lower, {"s": 5, "t": 37})


def decode_weights() -> None:
    """Weights of 4 bits."""
    from tests.backends.four_bits import quantized

    weight = quantized(50, 37, 16, zero=True)
    text = f"g (float[s,50] x) => (float[s,37] y) {{ {weight.node} y = MatMul(x, d) }}"
    agrees(parse(text, weight.initializers), "four_bits", four_bits.lower, {"s": 9})


def on_tensor_cores() -> None:
    """Bytes by emulated tensor cores, with a ring of stages."""
    from tests.gpu.test_rule_bytes import Words, product

    agrees(product("s", 84, 37), "matmul", matmul.lower, {"s": 21}, GPUS["sm_80"], Words())


def one_by_one() -> None:
    """Bytes that do not lie in words, by emulated tensor cores."""
    from tests.gpu.test_rule_bytes import product

    agrees(product("s", 85, 37), "matmul", matmul.lower, {"s": 21}, GPUS["sm_80"])


def plain() -> None:
    """A product whose rows and columns fill no tile."""
    weight = np.ones((19, 71), np.float32)
    text = "g (float[s,19] x) => (float[s,71] y) { y = MatMul(x, w) }"
    agrees(parse(text, {"w": weight}), "matmul", matmul.lower, {"s": 67}, GPUS["sm_80"])


def pixels() -> None:
    """A depthwise convolution whose tiles reach over the edges."""
    text = """g (float[1,8,h,w] x) => (float[1,8,y,z] y) {
        t = Conv<group=8, kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b) y = Relu(t) }"""
    model = parse(text, {"w": np.ones((8, 1, 3, 3), np.float32), "b": np.ones(8, np.float32)})
    agrees(model, "depthwise", depthwise.lower, {"h": 9, "w": 11}, GPUS["sm_80"])


def attend_on_tensor_cores() -> None:
    """Attention of float16 by emulated tensor cores: keys of three steps, the last of them ragged."""
    from tests.gpu.test_rule_tensor_attention import agrees as on_both
    from tests.gpu.test_rule_tensor_attention import model

    on_both(model("float16", 16, (2, 1), ", is_causal = 1", sizes=(20, 150)), {"b": 1})


def attend_with_odd_heads() -> None:
    """The same with heads of 5, whose elements come one by one."""
    from tests.gpu.test_rule_tensor_attention import agrees as on_both
    from tests.gpu.test_rule_tensor_attention import model

    on_both(model("float16", 5, (2, 1), sizes=(20, 70)), {"b": 1})


CASES = {
    "attention": attend,
    "attention in pieces": attend_in_pieces,
    "attention on tensor cores": attend_on_tensor_cores,
    "attention of odd heads": attend_with_odd_heads,
    "four bits": decode_weights,
    "tensor cores": on_tensor_cores,
    "tensor cores, one by one": one_by_one,
    "product": plain,
    "depthwise": pixels,
}

if __name__ == "__main__":
    CASES[sys.argv[1]]()
