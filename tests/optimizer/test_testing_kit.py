"""`check_pass` catches every way to break the contract."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.pass_manager import Pass
from optimizer.reference import Oracle
from optimizer.testing import DTYPES, FAMILIES, check_pass, difference, models

_count = itertools.count()


def model() -> ir.Model:
    return ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[N,3] x) => (float[N,3] y) <float[3] w = {1,2,3}> { a = Add(x, w) y = Tanh(a) }""")


@dataclasses.dataclass(frozen=True)
class Do(Pass):
    """Does what it is given, and claims what it is told."""

    change: Callable[[ir.Model], None] = lambda model: None
    claim: bool = True

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.change(model)
        return ir.passes.PassResult(model, self.claim)


def lie(m: ir.Model) -> None:
    m.graph[0].op_type = "Mul"


def rename_output(m: ir.Model) -> None:
    m.graph.outputs[0].name = "other"


def retype_output(m: ir.Model) -> None:
    m.graph.outputs[0].shape = ir.Shape([7, 3])


def make_invalid(m: ir.Model) -> None:
    m.graph[0].attributes["nonsense"] = ir.AttrInt64("nonsense", 1)


def compute_something_else(m: ir.Model) -> None:
    m.graph[1].op_type = "Sigmoid"


def grow(m: ir.Model) -> None:
    node = m.graph[0]
    identity = ir.node("Identity", [node.inputs[0]])
    identity.outputs[0].name = f"i{len(m.graph)}"
    m.graph.insert_before(node, identity)
    node.replace_input_with(0, identity.outputs[0])


def be_random(m: ir.Model) -> None:
    """Where a Tanh is alone; so that a second run changes nothing."""
    if "w" in m.graph.initializers:
        m.graph.initializers["w"].name = f"w{next(_count)}"
        m.graph[0].inputs[1].shape = None  # type: ignore[union-attr]
        m.graph[0].outputs[0].shape = ir.Shape(["N", 3])


@pytest.mark.parametrize(
    ("change", "claim", "message"),
    [
        (lie, False, "says modified=False, but the model is changed"),
        (lambda m: None, True, "says modified=True, but the model is not changed"),
        (rename_output, True, "changed the interface"),
        (retype_output, True, "changed the interface"),
        (compute_something_else, True, "changed output 'y': its relative error is"),
        (grow, True, "changed its own result"),
    ],
)
def test_catches(change: Callable[[ir.Model], None], claim: bool, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_pass(Do(change, claim), model())


def test_catches_an_invalid_model() -> None:
    with pytest.raises(onnx.checker.ValidationError, match="nonsense"):
        check_pass(Do(make_invalid), model())


def test_catches_results_that_differ() -> None:
    @dataclasses.dataclass(frozen=True)
    class Random(Pass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            found = "w" in model.graph.initializers
            if found:
                be_random(model)
            return ir.passes.PassResult(model, found)

    with pytest.raises(AssertionError, match="gave different results in two runs"):
        check_pass(Random(), model())


def test_a_good_pass_passes_and_the_model_is_not_changed() -> None:
    given_model = model()
    result = check_pass(Do(claim=False), given_model)
    assert not difference(given_model, result)


def test_difference_shows_the_lines() -> None:
    other = model()
    lie(other)
    lines = difference(model(), other).splitlines()
    assert [line.split(" = ")[1][:3] for line in lines if line[:2] in ("-%", "+%")] == ["Add", "Mul"]


@settings(max_examples=50, derandomize=True, deadline=None)
@given(models())
def test_models_are_valid(built: ir.Model) -> None:
    onnx.checker.check_model(ir.to_proto(built), full_check=True)
    assert all(value.shape is not None and value.shape[0] in ("N", 2) for value in built.graph.inputs)


OPERATORS = {
    "attention": {"Attention"},
    "attention-parts": {"MatMul", "Softmax", "Transpose"},
    "binary": {"Add", "Mul", "Sub"},
    "casts": {"Cast"},
    "clip": {"Clip"},
    "compare": {"Greater", "Where"},
    "concat-split": {"Concat", "Split"},
    "constants": {"Mul"},
    "conv": {"BatchNormalization", "Conv"},
    "einsum": {"Einsum"},
    "expand": {"Expand"},
    "function": {"Twice"},
    "gather": {"Gather"},
    "gelu-parts": {"Erf", "Pow", "Tanh"},
    "gemm": {"Gemm"},
    "identity": {"Dropout", "Identity", "Pad", "Slice"},
    "if": {"If"},
    "layer": {"LayerNormalization", "MatMul"},
    "loop": {"Loop"},
    "matmul": {"MatMul"},
    "neutral": {"Add", "Div", "Mul", "Sub"},
    "norm": {"LayerNormalization"},
    "norm-parts": {"Pow", "Reciprocal", "ReduceMean", "Sqrt"},
    "pool": {"AveragePool", "MaxPool"},
    "reduce": {"ReduceMean", "ReduceSum"},
    "repeat": set(),
    "reshape": {"Flatten", "Reshape"},
    "slice": {"Slice"},
    "softmax": {"LogSoftmax", "Softmax"},
    "squeeze": {"Squeeze"},
    "transpose": {"Transpose"},
    "unary": {"Relu", "Tanh"},
    "unsqueeze": {"Unsqueeze"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_its_operators(family: str) -> None:
    found: set[str] = set()

    @settings(max_examples=60, derandomize=True, deadline=None, database=None)
    @given(models(families=(family, "unsqueeze")))
    def collect(built: ir.Model) -> None:
        found.update(node.op_type for node in built.graph)

    collect()
    assert found >= OPERATORS[family]


@pytest.mark.parametrize("dtype", DTYPES)
def test_models_of_each_type_are_valid_and_run(dtype: ir.DataType) -> None:
    @settings(max_examples=15, derandomize=True, deadline=None, database=None)
    @given(models(dtypes=[dtype]))
    def run(built: ir.Model) -> None:
        onnx.checker.check_model(ir.to_proto(built), full_check=True)
        assert all(value.dtype == dtype for value in built.graph.inputs)
        assert Oracle(built, seed=0).outputs

    run()


@pytest.mark.parametrize("static", [True, False])
def test_sizes_can_be_numbers_or_symbols(static: bool) -> None:
    @settings(max_examples=10, derandomize=True, deadline=None, database=None)
    @given(models(static=static))
    def look(built: ir.Model) -> None:
        assert all(isinstance(value.shape[0], int) == static for value in built.graph.inputs if value.shape)

    look()
