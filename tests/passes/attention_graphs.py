"""Attention in ONNX's text, and what becomes of it."""

from __future__ import annotations

import onnx_ir as ir

from optimizer.pass_manager import PassManager
from optimizer.testing import check_pass
from passes.fuse_attention import FuseAttention
from passes.remove_unused import RemoveUnused
from tests.passes.transform import assert_stays, read

__all__ = [
    "ALIKE",
    "BOOL_MASK",
    "FLOAT_MASK",
    "NUMBERS",
    "REPEATED",
    "attention",
    "fused",
    "kinds",
    "only_attention",
    "packed",
    "reason",
]

FLOAT_MASK = ", float[B,1,S,5] m"
BOOL_MASK = ", bool[B,1,S,5] m"
NUMBERS = """float half = {0.5}, float two = {2}, float[1] quarter = {0.25}, float[2] pair = {1,2}, float zero = {0},
    float one = {1}, float minus = {-0.5}, float lowest = {-3.4028234663852886e38}, float hidden = {-1e9},
    float mild = {-100}, float inf = {-inf}, int64 first = {0}, int64 next = {1}, float[1,1,3,3] triangle =
    {0,-inf,-inf,0,0,-inf,0,0,0}, bool[1,1,3,3] seen = {1,0,0,1,1,0,1,1,1}, int64[2] square = {3,3}"""


def attention(
    scores: str = "s = Mul(a, half)", *, extra: str = "", after: str = "p = Softmax(s)", rows: str = "S"
) -> str:
    """`scores` makes `s` of the product `a`, `after` makes the probabilities `p`; `rows` is S."""
    keys = rows if rows == "3" else "5"
    return f"""g (float[B,4,{rows},8] q, float[B,4,{keys},8] k, float[B,4,{keys},6] v{extra}) => (float[B,4,{rows},6] y)
        <{NUMBERS}> {{
        t = Transpose<perm = [0,1,3,2]>(k) a = MatMul(q, t) {scores} {after} y = MatMul(p, v) }}"""


def fused(text: str) -> ir.Model:
    """The model after the pass, which has kept its contract; without dead nodes."""
    result = check_pass(FuseAttention(), read(text))
    RemoveUnused()(result)
    return result


def only_attention(model: ir.Model) -> ir.Node:
    """The one `Attention` that all has become."""
    (node,) = [node for node in model.graph if node.op_type == "Attention"]
    assert not any(node.op_type == "Softmax" for node in model.graph)
    return node


def kinds(model: ir.Model) -> list[str]:
    """The operators in their order."""
    return [node.op_type for node in model.graph]


def reason(text: str) -> str:
    """Why the one attention stays as it is."""
    assert_stays(FuseAttention(), text)
    (miss,) = PassManager([FuseAttention()]).run(read(text)).near_misses
    assert miss.pass_name == "fuse-attention"
    return miss.reason


PACKED = """g (float[B,S,32] q, float[B,T,KEY] k, float[B,T,KEY] v) => (float[B,S,32] y) <float half = {0.5},
    int64[4] four = {0,0,4,8}, int64[4] keys = {0,0,HEADS,8}, int64[3] three = {0,0,32}, int64[1] two = {2},
    int64[5] times = {1,1,REPEAT,1,1}, int64[4] all = {0,4,-1,8}> {
        q1 = Reshape(q, four) k1 = Reshape(k, keys) v1 = Reshape(v, keys) q2 = Transpose<perm = [0,2,1,3]>(q1)
        KV a = MatMul(q2, kt) s = Mul(a, half) p = Softmax(s) o = MatMul(p, v2)
        o1 = Transpose<perm = [0,2,1,3]>(o) y = Reshape(o1, three) }"""


def packed(how: str, heads: int = 4) -> str:
    """Heads that are cut out of three axes; `how` makes `kt` and `v2` of `k1` and `v1`."""
    text = PACKED.replace("KEY", str(heads * 8)).replace("HEADS", str(heads)).replace("REPEAT", str(4 // heads))
    return text.replace("KV", how)


ALIKE = "kt = Transpose<perm = [0,2,3,1]>(k1) v2 = Transpose<perm = [0,2,1,3]>(v1)"
REPEATED = """k2 = Transpose<perm = [0,2,1,3]>(k1) v3 = Transpose<perm = [0,2,1,3]>(v1)
    k3 = Unsqueeze(k2, two) k4 = Expand(k3, times) k5 = Reshape(k4, all) kt = Transpose<perm = [0,1,3,2]>(k5)
    v4 = Unsqueeze(v3, two) v5 = Expand(v4, times) v2 = Reshape(v5, all)"""
