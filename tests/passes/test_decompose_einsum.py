from __future__ import annotations

import itertools

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.pass_manager import PassManager
from optimizer.testing import check_pass, models
from passes.decompose_einsum import DecomposeEinsum
from passes.pipelines import default_pipeline
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays, read

SIZES = {"b": "B", "q": "3", "k": "4", "h": "2", "d": "5", "s": "S"}


def graph(equation: str, dtype: str = "float", *, sizes: dict[str, str] | None = None) -> str:
    """One Einsum; the size of each letter stands in `SIZES`."""
    known = SIZES if sizes is None else sizes
    operands, _, output = equation.partition("->")
    inputs = ", ".join(
        f"{dtype}[{','.join(known[letter] for letter in term)}] x{i}" for i, term in enumerate(operands.split(","))
    )
    names = ", ".join(f"x{i}" for i in range(len(operands.split(","))))
    result = f"{dtype}[{','.join(known[letter] for letter in output)}] y"
    return f'g ({inputs}) => ({result}) {{ y = Einsum<equation = "{equation}">({names}) }}'


@pytest.mark.parametrize(
    ("equation", "kinds"),
    [
        ("bqhd,bkhd->bhqk", ["Transpose", "Transpose", "MatMul"]),
        ("bhqk,bkhd->bqhd", ["Transpose", "MatMul", "Transpose"]),
        ("bhqd,bhkd->bhqk", ["Transpose", "MatMul"]),
        ("bhqd,bhdk->bhqk", ["MatMul"]),
        ("qd,dk->qk", ["MatMul"]),
        ("qd,dk->kq", ["MatMul", "Transpose"]),
        ("bsd,dk->bsk", ["MatMul"]),
        ("sqd,dk->qsk", ["Transpose", "MatMul"]),
        ("bsd,dhk->bshk", ["Reshape", "MatMul", "Reshape"]),
        ("bsd,hkd->bshk", ["Transpose", "Reshape", "MatMul", "Reshape"]),
        ("bqd->qdb", ["Transpose"]),
    ],
)
def test_products(equation: str, kinds: list[str]) -> None:
    model = check_pass(DecomposeEinsum(), read(graph(equation)))
    assert [node.op_type for node in model.graph] == kinds


def test_every_order_of_one_letter_of_each_kind() -> None:
    """All that the batch, the two outer letters and the inner one can do."""
    changed = 0
    for first, second, output in itertools.product(*map(itertools.permutations, ("bqd", "bkd", "bqk"))):
        model = check_pass(DecomposeEinsum(), read(graph(f"{''.join(first)},{''.join(second)}->{''.join(output)}")))
        changed += [node.op_type for node in model.graph].count("MatMul")
    assert changed == 6**3


def test_without_an_output_it_is_what_stands_once() -> None:
    model = check_pass(DecomposeEinsum(), read(graph("qd,dk->kq").replace("->kq", "")))
    assert [node.op_type for node in model.graph] == ["MatMul", "Transpose"]


def test_blanks_in_the_equation() -> None:
    text = graph("qd,dk->qk").replace('"qd,dk->qk"', '"qd, dk -> qk"')
    assert_becomes(DecomposeEinsum(), text, graph("qd,dk->qk").replace('Einsum<equation = "qd,dk->qk">', "MatMul"))


def test_in_every_body() -> None:
    assert_becomes_everywhere(
        DecomposeEinsum(), graph("qk->kq", sizes={"q": "3", "k": "3"}).replace("x0", "x"), "Transpose"
    )


def test_a_size_of_one_is_stretched_along_the_batch_alone() -> None:
    sizes = SIZES | {"b": "1"}
    text = graph("bqd,bkd->bqk", sizes=sizes).replace("float[1,4,5]", "float[6,4,5]").replace("[1,3,4]", "[6,3,4]")
    model = check_pass(DecomposeEinsum(), read(text))
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul"]


@pytest.mark.parametrize(
    "text",
    [
        graph("qd,dk->qk").replace('"qd,dk->qk"', '"...d,dk->...k"'),
        graph("qdd->qd".replace("dd", "d")).replace('"qd->qd"', '"dd->d"').replace("[3,5]", "[5,5]", 1)
        .replace("[3,5]", "[5]"),
        graph("qd,k->qk"),  # a letter is summed that is in one operand
        graph("bqh,bkh->bqkh"),  # no sum
        graph("bhqd,bkhd->qk"),  # several sums
        graph("bqd,bd->bq"),  # no column
        graph("bhqd,bkd->bhqk"),  # two letters of the first, and a batch
        graph("bsd,dk->bks"),  # two letters of the first, and a column between them
        graph("qd,dbh->qbh"),  # the sizes of two columns are unknown
        graph("qd,dhk->qhk", sizes=SIZES | {"k": "0"}),
        graph("qhd,dk->qk"),  # a letter is summed that is in the first alone, besides
        graph("qd,dk->qk").replace('"qd,dk->qk"', '"qqd,dk->qk"').replace("float[3,5]", "float[3,3,5]"),
        graph("qd,dk,kh->qh"),
        graph("qd->q"),
        graph("qd,dk->qk").replace("float[5,4]", "float[1,4]"),  # stretched along what is summed
        graph("sd,dk->sk").replace("float[5,4]", "float[T,4]").replace("float[S,5]", "float[S,D]"),
        graph("qd,dk->qk", "int8"),
    ],
)  # fmt: skip
def test_stays(text: str) -> None:
    assert_stays(DecomposeEinsum(), text)


def test_stays_before_matmul_has_the_types() -> None:
    assert_stays(DecomposeEinsum(), graph("qd,dk->qk"), opset=12)


def test_attention_by_einsum_is_one_node() -> None:
    text = """g (float[B,S,2,8] q, float[B,T,2,8] k, float[B,T,2,8] v) => (float[B,S,2,8] y) <float root = {0.25}> {
        s = Einsum<equation = "bqhd,bkhd->bhqk">(q, k) t = Mul(s, root) p = Softmax(t)
        y = Einsum<equation = "bhqk,bkhd->bqhd">(p, v) }"""
    model = read(text)
    PassManager(default_pipeline("cpu")).run(model)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Attention") == 1
    assert not {"Einsum", "MatMul", "Softmax"} & set(kinds)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(models(families=("einsum", "einsum", "transpose", "unsqueeze", "unary")))
def test_property(model: ir.Model) -> None:
    check_pass(DecomposeEinsum(), model)
