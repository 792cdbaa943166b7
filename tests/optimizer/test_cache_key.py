"""The key of the cache: everything that a result depends on changes it, and nothing else does."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer import Target, optimize
from optimizer.api import pipeline_of
from optimizer.cache import key as key_module
from optimizer.cache.digest import Digest, Undigestable
from optimizer.cache.key import make_key, name_of
from optimizer.cache.origin import source_stamp
from optimizer.pass_manager import Fixpoint, Pass
from passes.fold_constants import FoldConstants
from passes.remove_unused import RemoveUnused
from tests.optimizer.build import perceptron

DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(optimize).parameters.items()
    if parameter.default is not inspect.Parameter.empty
}


def key(model: object = None, target: str | Target = "cpu:x86-64-v3", **options: Any) -> str:
    arguments = {**DEFAULTS, "model": perceptron() if model is None else model, "target": target, **options}
    place = Target.parse(target)
    return make_key(arguments, pipeline_of(arguments["passes"], place), place)


def saved(model: onnx.ModelProto, path: Path, *, external: bool = False) -> Path:
    path.parent.mkdir(exist_ok=True)
    onnx.save(model, path, save_as_external_data=external, location="weights", size_threshold=0)
    return path


def with_one_bit_changed(model: onnx.ModelProto) -> onnx.ModelProto:
    data = bytearray(model.graph.initializer[2].raw_data)
    data[-1] ^= 1
    model.graph.initializer[2].raw_data = bytes(data)
    return model


def test_the_same_call_has_the_same_key(tmp_path: Path) -> None:
    assert key() == key(perceptron())
    first, second = (saved(perceptron(), tmp_path / name / "model.onnx") for name in ("a", "b"))
    assert key(first) == key(str(second))


def test_one_bit_of_a_weight(tmp_path: Path) -> None:
    changed = with_one_bit_changed(perceptron())
    assert key(changed) != key()
    assert key(ir.from_proto(changed)) != key(ir.from_proto(perceptron()))
    for external in (False, True):
        first = saved(perceptron(), tmp_path / "a" / "model.onnx", external=external)
        second = saved(with_one_bit_changed(perceptron()), tmp_path / "b" / "model.onnx", external=external)
        if external:
            assert first.read_bytes() == second.read_bytes()
        assert key(first) != key(second)


def test_external_weights_inside_of_a_body_count(tmp_path: Path) -> None:
    def with_body(value: float) -> Path:
        path = saved(perceptron(), tmp_path / str(value) / "model.onnx")
        (path.parent / "beside").write_bytes(np.float32(value).tobytes())
        tensor = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL, name="t")
        tensor.external_data.add(key="location", value="beside")
        constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
        body = onnx.helper.make_graph([constant], "body", [], [onnx.helper.make_tensor_value_info("c", 1, [1])])
        model = onnx.load(path)
        model.graph.node.append(onnx.helper.make_node("If", ["k"], ["unused"], then_branch=body, else_branch=body))
        path.write_bytes(model.SerializeToString())
        return path

    assert key(with_body(1.0)) != key(with_body(2.0))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"verify": "off"},
        {"fallback": "error"},
        {"precision": "bfloat16"},
        {"memory_budget": "1GB"},
        {"calibration": [np.zeros(3)]},
        {"dynamic_shapes": {"x": {0: "batch"}}},
        {"passes": "remove-unused"},
        {"passes": []},
        {"target": "onnx"},
        {"target": "cpu:x86-64-v4"},
        {"example_inputs": np.zeros((3, 32), np.float32)},
        {"model": perceptron(22)},
    ],
    ids=str,
)
def test_options(change: dict[str, Any]) -> None:
    assert key(**change) != key()


def test_every_parameter_of_optimize_counts_but_those_that_are_read_or_change_nothing() -> None:
    for name in DEFAULTS:
        changed = key(**{name: "something"}) if name not in ("target", "passes", "example_inputs") else ""
        assert (changed == key()) == (name in ("cache", "progress")), name
    assert key(one_day_there_is_this_option=1) != key()


def test_sizes_and_types_of_example_inputs_count_and_values_do_not() -> None:
    def with_example(shape: tuple[int, ...], dtype: str = "float32", fill: float = 0.0) -> str:
        return key(example_inputs={"x": np.full(shape, fill, dtype)})

    assert with_example((3, 32)) == with_example((3, 32), fill=1.0)
    assert len({with_example((3, 32)), with_example((4, 32)), with_example((3, 32), "float64")}) == 3
    assert key(example_inputs=(np.zeros(3), np.zeros(4))) != key(example_inputs=((np.zeros(3),), np.zeros(4)))
    with pytest.raises(Undigestable, match="an example input is a object, no array"):
        key(example_inputs=object())


def test_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Target.parse("cpu").cpu
    assert cpu is not None
    cores = Target("cpu", dataclasses.replace(cpu, cores=cpu.cores + 1))
    cache = Target("cpu", dataclasses.replace(cpu, l2_bytes=2 * cpu.l2_bytes))
    assert len({key(target="cpu"), key(target=cores), key(target=cache)}) == 3
    before = key()
    monkeypatch.setattr(key_module, "machine_facts", lambda: ["x86_64", "another model name"])
    assert key() != before


def test_versions_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(key_module, "versions", lambda: {"apache-tvm": "0.99"})
    other_version = key()
    monkeypatch.setattr(key_module, "source_stamp", lambda: "edited")
    assert len({before, other_version, key()}) == 3


def test_the_source_stamp_is_of_every_file_that_is_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in ("optimizer", "passes", "backends"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "file.py").write_text("x = 1")
    monkeypatch.setattr("optimizer.cache.origin._ROOT", tmp_path)
    stamps = {source_stamp.__wrapped__()}
    for folder in ("optimizer", "passes", "backends"):
        (tmp_path / folder / "deep" / "file.py").write_text("x = 2")
        stamps.add(source_stamp.__wrapped__())
    assert len(stamps) == 4


def test_a_pass_of_somebody_else_has_no_key() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(Pass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            return ir.passes.PassResult(model, False)

    for passes in ([Mine()], [Fixpoint((RemoveUnused(), Mine()))]):
        with pytest.raises(Undigestable, match="the pass mine is not one of this package"):
            key(passes=passes)
    Mine.__module__ = "passes.remove_unused"
    with pytest.raises(Undigestable, match="the pass mine"):
        key(passes=[Mine()])


def test_options_and_order_of_passes() -> None:
    options = [
        [FoldConstants(), RemoveUnused()],
        [RemoveUnused(), FoldConstants()],
        [FoldConstants(max_growth_bytes=5), RemoveUnused()],
        [Fixpoint((FoldConstants(), RemoveUnused()))],
    ]
    assert len({key(passes=passes) for passes in options}) == 4
    assert key(passes=options[0]) == key(passes="fold-constants,remove-unused")


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x0a"])
def test_what_cannot_be_read_has_no_key_or_one_of_its_own(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    try:
        assert key(tmp_path / "model.onnx") != key()
    except Undigestable as reason:
        assert "model.onnx is no ONNX model" in str(reason)
    with pytest.raises(Undigestable, match=r"missing.onnx cannot be read"):
        key(tmp_path / "missing.onnx")
    with pytest.raises(Undigestable, match="a int is no model"):
        key(3)


def test_names_of_models(tmp_path: Path) -> None:
    names = [name_of(model) for model in (tmp_path / "m.onnx", perceptron(), ir.from_proto(perceptron()), onnx)]
    assert names == ["m.onnx", "test", "test", "module"]
    assert name_of(onnx.ModelProto()) == "ModelProto"


def test_facts_do_not_run_into_each_other() -> None:
    def digest(*facts: str | bytes | int) -> str:
        made = Digest()
        made.add(*facts)
        return made.hexdigest()

    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("1:a", "c")}) == 4


def test_large_buffers_count_to_the_last_byte() -> None:
    data = np.zeros(70_000_001, np.uint8)

    def digest() -> str:
        made = Digest()
        made.add_bytes(data.data)
        return made.hexdigest()

    seen = {digest()}
    for position in (0, 2**25 - 1, 2**25, len(data) - 1):
        data[position] ^= 1
        seen.add(digest())
    assert len(seen) == 5
