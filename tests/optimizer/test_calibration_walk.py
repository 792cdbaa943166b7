"""A model that is run on calibration data a part at a time."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from optimizer.calibration import Samples, observe
from optimizer.calibration_walk import Walk, cut_between
from optimizer.ir.shapes import Shapes
from optimizer.ort_session import OrtSession

CHAIN = """g (float[M,4] x) => (float[M,4] y) {
    a = MatMul(x, v) r = Add(a, x) b = Tanh(r) c = MatMul(b, v) d = Add(c, r) e = Tanh(d) y = MatMul(e, v) }"""


def chain(text: str = CHAIN) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]> {text}')
    weight = next((v for node in model.graph for v in node.inputs if v is not None and v.name == "v"), None)
    if weight is not None:
        weight.const_value = ir.tensor(np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32), name="v")
        model.graph.register_initializer(weight)
    return model


def node_of(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.outputs[0].name == name)


def samples(*rows: int) -> Samples:
    rng = np.random.default_rng(1)
    return Samples([[rng.normal(size=(count, 4)).astype(np.float32)] for count in rows])


@pytest.mark.parametrize("most_bytes", [1 << 20, 40, 0])
def test_values_are_those_of_a_whole_run(most_bytes: int) -> None:
    model, given = chain(), samples(3, 1, 2)
    wanted = list(observe(model, ["b", "e", "x", "d"], given))
    with Walk(model, given, most_bytes) as walk:
        first = list(walk.observe(["b"]))
        walk.cut(node_of(model, "c"))
        walk.cut(node_of(model, "e"))
        rest = list(walk.observe(["e", "x", "d"]))
    for (b, e, x, d), found in zip(wanted, [[*a, *b] for a, b in zip(first, rest, strict=True)], strict=True):
        for expected, array in zip((b, e, x, d), found, strict=True):
            np.testing.assert_allclose(array, expected, rtol=1e-6)


def test_what_stands_behind_a_cut_sees_what_was_changed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = chain(), samples(2, 3)
    nodes: list[list[str]] = []
    load = OrtSession.from_model

    def counting(part: ir.Model, num_threads: int) -> OrtSession:
        nodes.append([node.op_type for node in part.graph])
        return load(part, num_threads=num_threads)

    monkeypatch.setattr(OrtSession, "from_model", counting)
    with Walk(model, given, 1 << 20) as walk:
        list(walk.observe(["b"]))
        walk.cut(node_of(model, "c"))
        before = list(walk.observe(["e"]))
        node = node_of(model, "d")
        node.replace_input_with(1, node.inputs[0])
        after = list(walk.observe(["e"]))
    assert nodes == [["MatMul", "Add", "Tanh"], ["MatMul", "Add", "Tanh"], *[["MatMul", "Add", "Tanh"]] * 2]
    for (wrong,), (found,), (wanted,) in zip(before, after, observe(model, ["e"], given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert not np.allclose(found, wrong)


def test_files_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, given = chain(), samples(2, 3)
    with Walk(model, given, 0) as walk:
        walk.cut(node_of(model, "c"))
        list(walk.observe(["d"]))
        (folder,) = tmp_path.iterdir()
        assert len(list(folder.iterdir())) == 4  # b and r of two sets
        walk.cut(node_of(model, "y"))
        list(walk.observe(["e"]))
        assert len(list(folder.iterdir())) == 2
    assert not list(tmp_path.iterdir())


def test_numbers_of_other_packages_go_through_a_file() -> None:
    model = chain("g (float[M,4] x) => (float[M,4] y) { a = Cast<to = 16>(x) y = Cast<to = 1>(a) }")
    given = samples(2)
    with Walk(model, given, 0) as walk:
        walk.cut(node_of(model, "y"))
        ((found,),) = walk.observe(["a"])
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found, next(iter(given))[0].astype(ml_dtypes.bfloat16))


# --- Where a model is cut ---


def cuts(model: ir.Model, *parts: list[str]) -> list[str | None]:
    nodes = [[node_of(model, name) for name in part] for part in parts]
    return [None if node is None else node.outputs[0].name for node in cut_between(model, Shapes(model), nodes)]


def test_a_cut_lies_where_the_fewest_values_cross() -> None:
    # In front of "b" only r crosses, in front of "c" b does as well; in front of "e" d, in front of "y" e.
    assert cuts(chain(), ["a"], ["c"], ["y"]) == ["b", "y"]


def test_no_cut_between_parts_that_are_interleaved() -> None:
    assert cuts(chain(), ["a", "c"], ["r"], ["y"]) == [None, "y"]


def test_no_cut_in_front_of_an_empty_part() -> None:
    assert cuts(chain(), ["a"], [], ["y"]) == [None, "y"]


def test_no_cut_through_a_sequence() -> None:
    model = chain(
        """g (float[M,4] x) => (float[M,4] y) {
            a = Tanh(x) s = SequenceConstruct(a, a) b = SequenceLength(s) i = Sub(b, b) c = SequenceAt(s, i)
            y = Tanh(c) }"""
    )
    assert cuts(model, ["a"], ["b"]) == ["s"]
    assert cuts(model, ["s"], ["b"], ["c"], ["y"]) == [None, None, "y"]


def test_what_hangs_on_constants_alone_is_computed_anew() -> None:
    model = chain(
        """g (float[M,4] x) => (float[M,4] y) {
            w = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>() u = Neg(w) a = Mul(x, u) y = Mul(a, u) }"""
    )
    given = samples(2)
    assert cuts(model, ["a"], ["y"]) == ["y"]
    with Walk(model, given, 0) as walk:
        walk.cut(node_of(model, "y"))
        ((found,),) = walk.observe(["y"])
    np.testing.assert_allclose(found, next(iter(given))[0] * np.array([1, 4, 9, 16], np.float32), rtol=1e-6)
