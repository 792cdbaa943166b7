"""What is kept of an analysis is what a new one would find out."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.ir.analysis import analyse, changed, keep_analyses
from optimizer.ir.edit import Editor
from optimizer.ir.shapes import Shapes, is_anonymous
from optimizer.ir.symbolic import Dim
from optimizer.ir.walk import all_nodes
from optimizer.pass_manager import Pass, PassManager
from optimizer.testing import DTYPES, models
from passes.pipelines import default_pipeline

MODEL = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[N,3] x) => (float[N,3] y) { t = Transpose<perm = [1, 0]>(x) y = Transpose<perm = [1, 0]>(t) }"""


def _calls(model: ir.Model, previous: int | None) -> int:
    return 1 if previous is None else previous + 1


def test_a_result_is_kept_until_the_model_changes() -> None:
    model = ir.from_onnx_text(MODEL)
    with keep_analyses(model):
        assert analyse(_calls, model) == 1
        assert analyse(_calls, model) == 1
        changed(model)
        assert analyse(_calls, model) == 2, "the next one is given what was known before"
        changed(model)
        changed(model)
        assert analyse(_calls, model) == 3


def test_nothing_is_kept_of_another_model_or_outside() -> None:
    model, other = ir.from_onnx_text(MODEL), ir.from_onnx_text(MODEL)
    first = analyse(Shapes, model)
    assert analyse(Shapes, model) is not first
    with keep_analyses(model):
        kept = analyse(Shapes, model)
        assert analyse(Shapes, other) is not analyse(Shapes, other)
        changed(other)
        with keep_analyses(other):
            assert analyse(Shapes, model) is not kept
        assert analyse(Shapes, model) is kept
    assert analyse(Shapes, model) is not kept


def test_a_change_by_an_editor_is_seen_by_the_next_one() -> None:
    model = ir.from_onnx_text(MODEL)
    (turned, last) = model.graph
    with keep_analyses(model):
        before = Editor(model).shapes
        editor = Editor(model)
        assert editor.shapes is before
        twin = ir.node("Transpose", [model.graph.inputs[0]], {"perm": [1, 0]})
        editor.substitute(turned, twin)
        after = Editor(model).shapes
        assert after is not before
        assert [str(dim) for dim in after.dims(twin.outputs[0]) or ()] == ["3", "N"]
        assert after.dims(last.outputs[0]) == before.dims(last.outputs[0])


@pytest.mark.parametrize("attribute", [{"perm": [0, 1]}, {}])
def test_shapes_follow_a_changed_attribute(attribute: dict[str, list[int]]) -> None:
    model = ir.from_onnx_text(MODEL)
    (turned, _) = model.graph
    before = Shapes(model)
    del turned.attributes["perm"]
    for name, value in attribute.items():
        turned.attributes[name] = ir.AttrInt64s(name, value)
    expected = ["N", "3"] if attribute else ["3", "N"]
    assert [str(dim) for dim in Shapes(model, before).dims(turned.outputs[0]) or ()] == expected


@pytest.mark.parametrize(("domain", "op_type", "expected"), [("", "Relu", ["N", "3"]), ("other", "Transpose", None)])
def test_shapes_follow_a_changed_operator(domain: str, op_type: str, expected: list[str] | None) -> None:
    model = ir.from_onnx_text(MODEL)
    (turned, _) = model.graph
    before = Shapes(model)
    turned.attributes.clear()
    before = Shapes(model, before)
    turned.domain, turned.op_type = domain, op_type
    found = Shapes(model, before).dims(turned.outputs[0])
    assert (None if found is None else [str(dim) for dim in found]) == expected


def test_shapes_follow_a_changed_input() -> None:
    model = ir.from_onnx_text(MODEL)
    before = Shapes(model)
    model.graph.inputs[0].shape = ir.Shape(["N", 5])
    (turned, _) = model.graph
    assert [str(dim) for dim in Shapes(model, before).dims(turned.outputs[0]) or ()] == ["5", "N"]


def test_shapes_follow_the_elements_of_a_constant() -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 23]>
        g (float[6] x) => (float[A,B] y) <int64[2] shape = {2, 3}> { y = Reshape(x, shape) }""")
    before = Shapes(model)
    content = model.graph.initializers["shape"]
    content.const_value = ir.tensor([3, 2], ir.DataType.INT64)
    assert Shapes(model, before).static(model.graph.outputs[0]) == (3, 2)


class _Comparing:
    """Compares what is kept with what is found out anew."""

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        self._compare(model)

    def after_pass(self, pass_: Pass, model: ir.Model, modified: bool, seconds: float) -> None:
        self._compare(model)

    @staticmethod
    def _compare(model: ir.Model) -> None:
        kept, new = analyse(Shapes, model), Shapes(model)
        for node in all_nodes(model):
            for value in node.outputs:
                assert _named(kept.dims(value)) == _named(new.dims(value)), value
                assert _named(kept.data(value)) == _named(new.data(value)), value
                assert kept.type(value) == new.type(value), value


def _named(dims: tuple[Dim, ...] | None) -> list[str] | None:
    """The sizes as text; which symbol stands for one without a name is not the same each time."""
    return None if dims is None else ["?" if is_anonymous(dim) else str(dim) for dim in dims]


@settings(max_examples=60, deadline=None)
@given(models(dtypes=DTYPES))
def test_shapes_kept_through_a_pipeline_are_those_inferred_anew(model: ir.Model) -> None:
    PassManager(default_pipeline("cpu")).run(model, [_Comparing()])
