"""Rules that must not change a bit: tried on all half-precision numbers, and proved in the theory of floating point."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import z3
from onnx.reference import ReferenceEvaluator

from optimizer.ir.query import array
from optimizer.ir.signs import is_positive_or_plus_zero
from optimizer.pass_manager import Pass
from passes.eliminate_identities import EliminateIdentities
from passes.reduce_strength import ReduceStrength
from tests.passes.transform import read
from tests.proofs.solver import counterexample, prove

HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)
"""All of them: zeros of both signs, subnormal numbers, infinities, and every NaN."""


def bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """The bits, with all NaN alike."""
    plain = np.asarray(values, np.float16)
    return np.where(np.isnan(plain), np.float16(np.nan), plain).view(np.uint16)


def run(model: ir.Model) -> npt.NDArray[Any]:
    with np.errstate(all="ignore"):
        return np.asarray(next(iter(ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": HALVES}))))


def graph(nodes: str, number: float = 0.0) -> ir.Model:
    """`x` is a vector of half-precision numbers, `k` the number."""
    model = read(f"g (float16[65536] x, float16 k) => (float16[65536] y) {{ {nodes} }}")
    k = model.graph.inputs.pop()
    k.const_value = ir.tensor(np.array(number, np.float16))
    model.graph.register_initializer(k)
    return model


def differing(pass_: Pass, model: ir.Model) -> int:
    """On how many numbers the model computes something else after the pass, which must fire."""
    before = bits(run(model))
    assert pass_(model).modified, "the pass did nothing"
    return int((bits(run(model)) != before).sum())


@pytest.mark.parametrize(
    ("nodes", "number"),
    [
        ("c = Floor(x) a = Neg(c) y = Neg(a)", 0),
        ("a = Neg(x) y = Abs(a)", 0),
        ("y = Mul(x, k)", -1),
        ("y = Mul(k, x)", -1),
        ("y = Pow(x, k)", 2),
        ("y = Pow(x, k)", -1),
        ("y = Div(k, x)", 1),
        ("a = Abs(x) y = Pow(a, k)", 0.5),
        ("a = Mul(x, x) y = Pow(a, k)", 0.5),
        ("a = Neg(x) y = Sub(x, a)", 0),
        ("r = Sqrt(x) a = Neg(r) y = Add(x, a)", 0),
        ("r = Sqrt(x) a = Neg(r) b = Neg(x) y = Mul(a, b)", 0),
        ("r = Sqrt(x) a = Neg(r) b = Neg(x) y = Div(a, b)", 0),
        *((f"a = {name}(x) y = {name}(a)", 0.0) for name in ("Abs", "Ceil", "Floor", "Relu", "Round", "Sign")),
    ],
)
def test_reduce_strength_keeps_every_bit(nodes: str, number: float) -> None:
    # Pow is not rounded correctly everywhere: it may be off by one in the last place.
    loose = "Pow(x, k)" in nodes or "Pow(a, k)" in nodes
    model = graph(nodes, number)
    before = run(model)
    assert differing(ReduceStrength(), model) == 0 or loose
    with np.errstate(all="ignore"):
        after = run(model)
        same = (bits(after) == bits(before)) | (np.abs(after - before) <= np.abs(np.spacing(after)))
    assert same.all()


@pytest.mark.parametrize("exponent", range(-24, 16))
def test_a_division_by_a_power_of_two(exponent: int) -> None:
    """It becomes a product when the inverse is a normal number, and stays else."""
    model = graph("y = Div(x, k)", 2.0**exponent)
    limits = ml_dtypes.finfo(np.float16)  # type: ignore[no-untyped-call]
    if float(limits.smallest_normal) <= 2.0**-exponent <= float(limits.max):
        assert differing(ReduceStrength(), model) == 0
    else:
        assert not ReduceStrength()(model).modified


def test_without_these_guards_bits_do_change() -> None:
    with np.errstate(all="ignore"):
        assert (bits(HALVES / np.float16(3)) != bits(HALVES * np.float16(1 / 3))).any()  # no power of two
        inverse = np.float16(1) / np.float16(2.0**-17)  # infinite
        assert (bits(HALVES / np.float16(2.0**-17)) != bits(HALVES * inverse)).any()
        assert (bits(np.power(HALVES, np.float16(0.5))) != bits(np.sqrt(HALVES))).any()  # minus infinity and -0.0
        relu = np.where(HALVES > 0, HALVES, HALVES * 0)
        assert np.signbit(relu[HALVES == 0]).any()  # -0.0 can pass Relu


@pytest.mark.parametrize(
    ("nodes", "number"),
    [("y = Add(x, k)", -0.0), ("y = Sub(x, k)", 0.0), ("y = Mul(x, k)", 1), ("y = Div(x, k)", 1), ("y = Pow(x, k)", 1)],
)
def test_neutral_elements(nodes: str, number: float) -> None:
    assert differing(EliminateIdentities(), graph(f"z = Abs(x) {nodes.replace('x', 'z')}", number)) == 0
    expected = graph(nodes, number)
    np.testing.assert_array_equal(bits(run(expected)), bits(HALVES))


NOT_NEUTRAL = [("y = Add(x, k)", 0.0), ("y = Sub(x, k)", -0.0), ("y = Mul(x, k)", 0.0)]


@pytest.mark.parametrize(("nodes", "number"), NOT_NEUTRAL)
def test_what_only_looks_neutral_is_not(nodes: str, number: float) -> None:
    model = graph(nodes, number)
    assert (bits(run(model)) != bits(HALVES)).any()
    assert not EliminateIdentities()(model).modified


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Abs(x)",
        "y = Mul(x, x)",
        "a = Exp(x) y = Sqrt(a)",
        "a = Sigmoid(x) y = Reciprocal(a)",
        "a = Abs(x) b = Mul(x, x) y = Add(a, b)",
        "a = Abs(x) b = Exp(x) y = Div(a, b)",
        "y = Softplus(x)",
    ],
)
def test_what_is_called_positive_has_no_sign(nodes: str) -> None:
    model = graph(nodes)
    assert is_positive_or_plus_zero(model.graph.outputs[0])
    result = run(model)
    assert not np.signbit(result[~np.isnan(result)]).any()


@pytest.mark.parametrize(
    "nodes", ["y = Relu(x)", "y = Neg(x)", "y = Sqrt(x)", "a = Abs(x) y = Sub(a, x)", "y = Tanh(x)"]
)
def test_what_may_have_a_sign_is_not_called_positive(nodes: str) -> None:
    assert not is_positive_or_plus_zero(graph(nodes).graph.outputs[0])


def test_constants_have_the_sign_that_they_have() -> None:
    for number, positive in ((0.0, True), (-0.0, False), (2.0, True), (-np.inf, False)):
        (k,) = graph("y = Add(x, k)", number).graph.initializers.values()
        assert array(k) is not None
        assert is_positive_or_plus_zero(k) == positive


# --- Two operands: in the theory of floating point, for a small format; the argument does not depend on the width ---

SMALL = z3.FPSort(3, 4)
NEAREST = z3.RNE()
p, q = z3.FP("p", SMALL), z3.FP("q", SMALL)


def test_signs_inside_sums_and_products() -> None:
    prove(_same(z3.fpAdd(NEAREST, p, z3.fpNeg(q)), z3.fpSub(NEAREST, p, q)))
    prove(_same(z3.fpSub(NEAREST, p, z3.fpNeg(q)), z3.fpAdd(NEAREST, p, q)))
    prove(_same(z3.fpMul(NEAREST, z3.fpNeg(p), z3.fpNeg(q)), z3.fpMul(NEAREST, p, q)))
    prove(_same(z3.fpDiv(NEAREST, z3.fpNeg(p), z3.fpNeg(q)), z3.fpDiv(NEAREST, p, q)))


def test_the_operands_of_a_difference_cannot_change_places() -> None:
    """Neither 0 - x nor Sub(y, x) is a negation that keeps the sign of zero."""
    zero = z3.fpPlusZero(SMALL)
    assert counterexample(_same(z3.fpSub(NEAREST, zero, p), z3.fpNeg(p))) is not None
    assert counterexample(_same(z3.fpSub(NEAREST, p, q), z3.fpNeg(z3.fpSub(NEAREST, q, p)))) is not None


def test_constants_one_after_the_other_stay_apart() -> None:
    """For integers they become one; here the sum in between is rounded, or overflows."""
    s = z3.FP("s", SMALL)
    left = z3.fpMul(NEAREST, z3.fpMul(NEAREST, p, q), s)
    assert counterexample(_same(left, z3.fpMul(NEAREST, p, z3.fpMul(NEAREST, q, s)))) is not None


def test_a_product_with_a_reciprocal_is_a_quotient_up_to_rounding() -> None:
    one = z3.FPVal(1, SMALL)
    product = z3.fpMul(NEAREST, p, z3.fpDiv(NEAREST, one, q))
    assert counterexample(_same(product, z3.fpDiv(NEAREST, p, q))) is not None


def _same(left: Any, right: Any) -> Any:
    """The same bits; all NaN are alike."""
    return z3.Or(z3.And(z3.fpIsNaN(left), z3.fpIsNaN(right)), left == right)
