from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.unpack_sequences import UnpackSequences
from tests.passes.transform import assert_becomes, assert_stays, read


def splits(sizes: str, reads: str, shape: str = "2,6", attributes: str = "axis = 1") -> str:
    given = f", {sizes.split()[-3]}" if sizes else ""
    weights = f"<{sizes}, int64 i = {{0}}, int64 j = {{-1}}>" if sizes else "<int64 i = {0}, int64 j = {-1}>"
    return f"""g (float[{shape}] x) => (float[A,B] y) {weights} {{
        s = SplitToSequence <{attributes}> (x{given}) {reads} }}"""


ENDS = "a = SequenceAt(s, i) b = SequenceAt(s, j) y = Add(a, b)"


def becomes(sizes: str, outputs: str, first: str, last: str, shape: str = "2,6") -> str:
    return f"""g (float[{shape}] x) => (float[A,B] y) <int64[{len(outputs.split(","))}] n = {{{sizes}}}> {{
        {outputs} = Split <axis = 1> (x, n) y = Add({first}, {last}) }}"""


def test_a_split_by_sizes() -> None:
    assert_becomes(UnpackSequences(), splits("int64[3] n = {2,2,2}", ENDS), becomes("2,2,2", "p, q, r", "p", "r"))


def test_a_split_by_one_size_has_a_smaller_rest() -> None:
    reads = "a = SequenceAt(s, i) c = Neg(a) b = SequenceAt(s, j) d = Neg(b) y = Concat <axis = 1> (c, d)"
    expected = """g (float[2,6] x) => (float[A,B] y) <int64[2] n = {4,2}> {
        p, q = Split <axis = 1> (x, n) c = Neg(p) d = Neg(q) y = Concat <axis = 1> (c, d) }"""
    assert_becomes(UnpackSequences(), splits("int64 n = {4}", reads), expected)


def test_a_split_into_slices_keeps_or_drops_the_axis() -> None:
    assert_becomes(UnpackSequences(), splits("", ENDS, "2,3"), becomes("1,1,1", "p, q, r", "p", "r", "2,3"))
    expected = """g (float[2,3] x) => (float[A,B] y) <int64[3] n = {1,1,1}, int64[1] l = {1}, int64[1] k = {1}> {
        p, q, r = Split <axis = 1> (x, n) a = Squeeze(p, l) b = Squeeze(r, l) c = Add(a, b) y = Unsqueeze(c, k) }"""
    reads = "a = SequenceAt(s, i) b = SequenceAt(s, j) c = Add(a, b) y = Unsqueeze(c, k)"
    text = splits("", reads, "2,3", "axis = 1, keepdims = 0").replace("<int64 i", "<int64[1] k = {1}, int64 i")
    assert_becomes(UnpackSequences(), text, expected)


def test_an_element_of_a_constructed_sequence() -> None:
    assert_becomes(
        UnpackSequences(),
        """g (float[2] x, float[2] z) => (float[2] y) <int64 i = {1}> {
            a = Neg(x) s = SequenceConstruct(z, a) b = SequenceAt(s, i) y = Relu(b) }""",
        "g (float[2] x, float[2] z) => (float[2] y) { a = Neg(x) y = Relu(a) }",
    )


def test_an_element_that_is_an_input_and_an_output() -> None:
    assert_becomes(
        UnpackSequences(),
        "g (float[2] x) => (float[2] y) <int64 i = {0}> { s = SequenceConstruct(x, x) y = SequenceAt(s, i) }",
        "g (float[2] x) => (float[2] y) { y = Identity(x) }",
    )


@pytest.mark.parametrize(
    "text",
    [
        splits("int64[3] n = {2,2,2}", ENDS).replace("int64 i = {0}", "int64 i = {3}"),
        splits("int64[3] n = {2,2,2}", ENDS + " l = SequenceLength(s) m = Identity(l)"),
        splits("", ENDS, "2,N"),
        splits("int64 n = {4}", ENDS, "2,N"),
        splits("int64[3] n = {2,2,2}", "a = SequenceAt(s, k) y = Neg(a)").replace("x) =>", "x, int64 k) =>"),
        splits("int64[3] n = {2,2,2}", ENDS).replace("x) =>", "x, int64[3] m) =>").replace("(x, n)", "(x, m)"),
    ],
    ids=["no such element", "other reader", "unknown length", "unknown rest", "computed position", "computed sizes"],
)
def test_stays(text: str) -> None:
    """Some of these cannot be run, so only the pass itself is."""
    assert not UnpackSequences()(read(text)).modified


def test_stays_before_opset_13() -> None:
    assert_stays(UnpackSequences(), splits("int64[3] n = {2,2,2}", ENDS), opset=12)


def test_a_sequence_that_is_an_output_stays() -> None:
    assert_stays(
        UnpackSequences(),
        """g (float[2,6] x) => (float[2,2] y, seq(float[2,2]) s) <int64[3] n = {2,2,2}, int64 i = {0}> {
            s = SplitToSequence <axis = 1> (x, n) y = SequenceAt(s, i) }""",
    )


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models())
def test_any_model(model: ir.Model) -> None:
    check_pass(UnpackSequences(), model)
