"""A mask that hides nothing is no input of an `Attention`."""

from __future__ import annotations

import pytest

from passes.fuse_attention import FuseAttention
from tests.passes.attention_graphs import fused, only_attention
from tests.passes.transform import read

AXES = {
    4: ("float[B,2,S,4] q, float[B,2,5,4] k, float[B,2,5,4] v", "float[B,2,S,4] y", ""),
    3: ("float[B,S,8] q, float[B,5,8] k, float[B,5,8] v", "float[B,S,8] y", "<q_num_heads = 2, kv_num_heads = 2>"),
}
TRUE, ZERO, LOW = "bool[1,1,1,5] one = {1,1,1,1,1}", "float[1] one = {0}", "float[1] one = {-1}"
SOME = "bool[1,1,1,5] one = {1,1,1,0,1}"


def text(axes: int, constant: str, keys: int = 5) -> str:
    inputs, output, attributes = AXES[axes]
    mask = "m" if keys == 5 else "n"
    return f"""g ({inputs}) => ({output}) <{constant}, int64[1] rest = {{{keys}}}, int64[1] single = {{1}}> {{
        rows = Shape<start = -2, end = -1>(q) shape = Concat<axis = 0>(single, single, rows, rest)
        {mask} = Expand(one, shape) y = Attention{attributes}(q, k, v, {mask}) }}"""


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("constant", [TRUE, ZERO])
def test_a_mask_of_nothing_falls_away(axes: int, constant: str) -> None:
    node = only_attention(fused(text(axes, constant)))
    assert len([value for value in node.inputs if value is not None]) == 3


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("constant", [SOME, LOW])
def test_a_mask_that_says_something_stays(axes: int, constant: str) -> None:
    assert only_attention(fused(text(axes, constant))).inputs[3] is not None


PAST = """g (float[B,2,S,4] q, float[B,2,5,4] k, float[B,2,5,4] v, float[B,2,3,4] pk, float[B,2,3,4] pv)
    => (float[B,2,S,4] y, float[B,2,8,4] nk, float[B,2,8,4] nv)
    <bool one = {1}, int64[1] all = {8}, int64[1] some = {1}> {
    rows = Shape<start = 2, end = 3>(q) shape = Concat<axis = 0>(some, some, rows, all)
    m = Expand(one, shape) y, nk, nv = Attention(q, k, v, m, pk, pv) }"""


def test_the_keys_of_the_past_count() -> None:
    assert only_attention(fused(PAST)).inputs[3] is None


def test_a_mask_of_unknown_length_stays() -> None:
    """One that is too short hides the keys that it does not reach."""
    unknown = PAST.replace("float[B,2,3,4] pk, float[B,2,3,4] pv", "float[B,2,P,4] pk, float[B,2,P,4] pv").replace(
        "[B,2,8,4]", "[B,2,T,4]"
    )
    model = read(unknown)
    FuseAttention()(model)  # not run: ONNX Runtime wants three keys of the past, or a mask of another length
    assert only_attention(model).inputs[3] is not None
