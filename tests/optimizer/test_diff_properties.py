"""What holds of the diff of any two models."""

from __future__ import annotations

import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.model_diff import ModelDiff, compare_sides, diff, read_side
from optimizer.model_diff.page import page_of
from optimizer.model_diff.stored import pack_side, unpack_side
from optimizer.pass_manager import PassManager
from optimizer.testing import models
from passes.pipelines import default_pipeline

SETTINGS = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def every_node_is_matched_once(found: ModelDiff) -> bool:
    before = sorted(index for match in found.matches for index in match.before)
    after = sorted(index for match in found.matches for index in match.after)
    return before == list(range(len(found.before.nodes))) and after == list(range(len(found.after.nodes)))


@SETTINGS
@given(models())
def test_a_model_is_identical_to_its_copy(model: ir.Model) -> None:
    assert diff(model, model.clone()).identical


@SETTINGS
@given(models())
def test_names_inside_do_not_matter(model: ir.Model) -> None:
    other = model.clone()
    kept = {value.name for value in (*other.graph.inputs, *other.graph.outputs)}
    for node in other.graph:
        node.name = f"renamed_{node.name}"
        for value in node.outputs:
            if value.name and value.name not in kept:
                value.name = f"renamed_{value.name}"
    found = diff(model, other)
    assert every_node_is_matched_once(found)
    assert not list(found.of_kind("added", "removed", "fused", "split", "rewritten"))


@SETTINGS
@given(models())
def test_every_node_is_in_one_match_after_the_passes(model: ir.Model) -> None:
    before = read_side(model.clone(), "before")
    PassManager(default_pipeline("onnx")).run(model)
    found = compare_sides(before, read_side(model, "after"))
    assert every_node_is_matched_once(found)
    assert str(found)
    assert page_of(found)


@SETTINGS
@given(models(), models())
def test_any_two_models_can_be_compared(one: ir.Model, other: ir.Model) -> None:
    found = diff(one, other)
    assert every_node_is_matched_once(found)
    back = diff(other, one)
    assert found.identical == back.identical


@SETTINGS
@given(models(), st.booleans())
def test_facts_survive_being_stored(model: ir.Model, optimized: bool) -> None:
    if optimized:
        PassManager(default_pipeline("onnx")).run(model)
    side = read_side(model, "side")
    stored = unpack_side(pack_side(side))
    assert stored.nodes == side.nodes
    assert {key: weight.digest() for key, weight in stored.weights.items()} == {
        key: weight.digest() for key, weight in side.weights.items()
    }
    assert compare_sides(stored, side).identical
