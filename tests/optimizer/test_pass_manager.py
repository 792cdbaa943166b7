"""The contract of passes, the manager and pipeline strings."""

from __future__ import annotations

import dataclasses
import gc
import re

import onnx_ir as ir
import pytest

from optimizer.errors import PassError, PipelineError
from optimizer.ir import provenance
from optimizer.ir.edit import rewrite_nodes
from optimizer.pass_manager import Fixpoint, Pass, PassManager, format_pipeline, parse_pipeline


def model() -> ir.Model:
    return ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[3] x) => (float[3] y) { a = Relu(x) b = Relu(a) c = Abs(b) y = Neg(c) }""")


@dataclasses.dataclass(frozen=True)
class RenameOps(Pass):
    """Changes one node at a time, so that it takes several runs to settle."""

    old: str = "Relu"
    new: str = "Elu"
    limit: int = 1
    careful: bool = False
    ratio: float = 0.5

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [node for node in model.graph if node.op_type == self.old][: self.limit]
        for node in found:
            node.op_type = self.new
        return ir.passes.PassResult(model, bool(found))


@dataclasses.dataclass(frozen=True)
class Nothing(Pass):
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, False)


@dataclasses.dataclass(frozen=True)
class Broken(Pass):
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        raise KeyError("lost")


@dataclasses.dataclass(frozen=True)
class ReplaceAbs(Pass):
    """Abs becomes Max(x, Neg(x)); only the node that gives the old output says where it comes from by itself."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph:
            if node.op_type == "Abs":
                negative = ir.node("Neg", inputs=[node.inputs[0]])
                larger = ir.node("Max", inputs=[node.inputs[0], negative.outputs[0]])
                larger.outputs[0].name = node.outputs[0].name
                model.graph.insert_before(node, [negative, larger])
                node.outputs[0].replace_all_uses_with(larger.outputs[0])
                model.graph.remove(node, safe=True)
                return ir.passes.PassResult(model, True)
        return ir.passes.PassResult(model, False)


REGISTRY: dict[str, type[Pass]] = {"broken": Broken, "nothing": Nothing, "rename-ops": RenameOps}


class Journal:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, bool | None]] = []

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        self.events.append(("before", pass_.name, None))

    def after_pass(self, pass_: Pass, model: ir.Model, modified: bool, seconds: float) -> None:
        assert seconds >= 0
        self.events.append(("after", pass_.name, modified))


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


# --- Passes and the manager ---


def test_the_name_is_the_class_name_in_kebab_case() -> None:
    assert RenameOps().name == "rename-ops"


def test_runs_passes_in_order_and_tells_instruments() -> None:
    journal = Journal()
    result = PassManager([RenameOps(), Nothing()]).run(model(), [journal])
    assert result.modified
    assert ops(result.model) == ["Elu", "Relu", "Abs", "Neg"]
    assert journal.events == [
        ("before", "rename-ops", None),
        ("after", "rename-ops", True),
        ("before", "nothing", None),
        ("after", "nothing", False),
    ]


def test_nothing_modified() -> None:
    assert not PassManager([Nothing()]).run(model()).modified


def test_fixpoint_runs_until_its_passes_settle() -> None:
    journal = Journal()
    group = Fixpoint((RenameOps(), RenameOps(old="Elu", new="Tanh"), Nothing()), max_rounds=9)
    assert ops(PassManager([group]).run(model(), [journal]).model) == ["Tanh", "Tanh", "Abs", "Neg"]
    runs = [modified for event, name, modified in journal.events if event == "after"]
    # Two rounds that change, and then each pass once: the last one of the third round has nothing new to see.
    assert runs == [True, True, False, True, True, False, False, False]


def test_what_has_seen_the_model_as_it_is_does_not_run_again() -> None:
    journal = Journal()
    PassManager([Nothing(), Nothing(), RenameOps(), Nothing(), Fixpoint((Nothing(),))]).run(model(), [journal])
    assert [name for event, name, _ in journal.events if event == "before"] == ["nothing", "rename-ops", "nothing"]


def test_fixpoint_stops_after_max_rounds() -> None:
    group = Fixpoint((RenameOps(), Nothing()), max_rounds=1)
    assert ops(PassManager([group]).run(model()).model) == ["Elu", "Relu", "Abs", "Neg"]


def test_fixpoint_without_a_manager() -> None:
    result = Fixpoint((RenameOps(), Nothing()))(model())
    assert result.modified
    assert ops(result.model) == ["Elu", "Elu", "Abs", "Neg"]


def test_a_failing_pass_is_named() -> None:
    with pytest.raises(PassError, match="pass 'broken': failed with KeyError: 'lost'") as caught:
        PassManager([Broken()]).run(model())
    assert caught.value.pass_name == "broken"
    assert isinstance(caught.value.__cause__, KeyError)


# --- Provenance ---


def test_every_node_carries_its_origin() -> None:
    result = PassManager([Nothing()]).run(model())
    labels = [provenance.origins(node) for node in result.model.graph]
    assert labels == [("Relu(a)",), ("Relu(b)",), ("Abs(c)",), ("Neg(y)",)]
    assert all(provenance.makers(node) == () for node in result.model.graph)


def test_the_manager_fills_in_the_origin_of_new_nodes() -> None:
    result = PassManager([ReplaceAbs()]).run(model())
    by_type = {node.op_type: node for node in result.model.graph}
    assert provenance.origins(by_type["Max"]) == ("Abs(c)",)
    assert provenance.makers(by_type["Max"]) == ("replace-abs",)
    assert provenance.makers(by_type["Relu"]) == ()


def test_inherit_merges_without_duplicates() -> None:
    m = model()
    provenance.mark_originals(m)
    first, second, *_ = m.graph
    provenance.inherit(first, [second])
    provenance.inherit(first, [second])
    assert provenance.origins(first) == ("Relu(a)", "Relu(b)")


# --- Pipeline strings ---


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "nothing,rename-ops",
        "rename-ops{old=Abs,limit=3,careful=true,ratio=0.25}",
        "fixpoint(nothing,rename-ops{limit=2}){max_rounds=3},nothing",
        "fixpoint(fixpoint(nothing),nothing)",
    ],
)
def test_prints_back_what_it_parsed(text: str) -> None:
    passes = parse_pipeline(text, REGISTRY)
    assert format_pipeline(passes) == text
    assert parse_pipeline(format_pipeline(passes), REGISTRY) == passes
    assert str(PassManager(passes)) == text


def test_options_are_typed_and_spaces_do_not_matter() -> None:
    text = " rename-ops { limit = 3 , careful=true, ratio=1, old=Abs } , nothing "
    passes = parse_pipeline(text, REGISTRY)
    assert passes == [RenameOps(limit=3, careful=True, ratio=1.0, old="Abs"), Nothing()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the name of a pass is missing"),
        ("nothing,", "the name of a pass is missing"),
        (",nothing", "',' where the name of a pass was expected"),
        ("nothin", "no pass is called 'nothin'; did you mean 'nothing'?"),
        ("fixpiont(nothing)", "no pass is called 'fixpiont'; did you mean 'fixpoint'?"),
        ("zzz", "no pass is called 'zzz'"),
        ("nothing nothing", "'nothing' where ',' or the end was expected"),
        ("nothing)", "')' where ',' or the end was expected"),
        ("fixpoint(nothing", "the end where ')' was expected"),
        ("fixpoint", "the end where '(' was expected"),
        ("rename-ops{limt=3}", "'rename-ops' has no option 'limt'; did you mean 'limit'?; it has old, new"),
        ("nothing{a=1}", "'nothing' has no option 'a'; it has none"),
        ("rename-ops{limit=x}", "rename-ops{limit} must be of type int, not 'x'"),
        ("rename-ops{careful=1}", "rename-ops{careful} must be true or false, not '1'"),
        ("rename-ops{limit=1,limit=2}", "option 'limit' of 'rename-ops' is given twice"),
        ("rename-ops{limit}", "'}' where '=' was expected"),
        ("rename-ops{limit=}", "'}' where a value for 'limit' was expected"),
        ("rename-ops{limit=1", "the end where ',' was expected"),
        ("fixpoint(nothing){passes=1}", "'fixpoint' has no option 'passes'"),
    ],
)
def test_says_what_is_wrong_with_a_pipeline(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=re.escape(message)):
        parse_pipeline(text, REGISTRY)


def test_near_misses_of_the_last_run_name_their_pass() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float[2] y) { a = Neg(x) y = Neg(a) }'
    )

    @dataclasses.dataclass(frozen=True)
    class Hesitate(Pass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            return rewrite_nodes(model, lambda editor, _, node: editor.miss(node, "it is not wanted"))

    found = PassManager([Fixpoint((Hesitate(),)), Hesitate()]).run(model).near_misses
    assert [(miss.pass_name, miss.node, miss.reason) for miss in found] == [
        ("hesitate", "Neg(a)", "it is not wanted"),
        ("hesitate", "Neg(y)", "it is not wanted"),
    ]
    assert found[0].origins == ("Neg(a)",)


def test_only_nodes_of_the_operators_asked_for_are_visited() -> None:
    seen: list[str] = []
    rewrite_nodes(model(), lambda editor, scope, node: seen.append(node.op_type), ("Abs", "Neg", "Exp"))
    assert seen == ["Abs", "Neg"]
    rewrite_nodes(model(), lambda editor, scope, node: seen.append(node.op_type), ("Exp",))
    assert seen == ["Abs", "Neg"]


@dataclasses.dataclass(frozen=True)
class AskTheCollector(Pass):
    """Fails unless the garbage collector rests."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        assert not gc.isenabled()
        raise TypeError("to see what an error leaves behind")


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_rests_and_is_then_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(PassError, match="to see what an error leaves behind"):
            PassManager([AskTheCollector()]).run(model())
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
