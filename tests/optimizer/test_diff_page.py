"""The page of a diff as a file, and the groups that it shows; `tests/browser` opens it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from optimizer.model_diff import diff
from optimizer.model_diff.groups import groups_of, scopes_of
from optimizer.model_diff.page import page_of
from tests.optimizer.build import model, node, perceptron, value


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    data: dict[str, Any] = json.loads(text)
    return data


def named(*names: str) -> onnx.ModelProto:
    """A chain of nodes with these names."""
    nodes = [node("Relu", [f"t{i}"], [f"t{i + 1}"], name=name) for i, name in enumerate(names)]
    return model(nodes, [value("t0", [4])], [value(f"t{len(names)}", [4])])


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    diff(perceptron(), perceptron()).save(tmp_path / "diff.html")
    page = (tmp_path / "diff.html").read_text()
    assert not re.findall(r"""<(?:link|img|iframe)|\b(?:src|href)\s*=|@import|url\(""", page.split("<script>")[0])
    assert "default-src 'none'" in page
    assert "MIT" in page, "the layout library's licence goes with it"


def test_the_page_holds_every_node() -> None:
    data = data_of(page_of(diff(perceptron(), perceptron(hidden=128))))
    for side in data["sides"]:
        assert [facts["l"] for facts in side["nodes"]] == ["first", "bias", "activation", "second", "x", "y"]
        assert [facts["o"] for facts in side["nodes"]][4:] == ["input", "output"]
    assert data["sides"][1]["weights"]["w1"] == "float32[32, 128]"


def test_data_cannot_end_its_element() -> None:
    page = page_of(diff(named("</script><b>"), named("<!--")))
    assert data_of(page)
    assert page.count("</script>") == 3


def test_the_same_diff_gives_the_same_page() -> None:
    first, second = (page_of(diff(perceptron(), perceptron(hidden=128))) for _ in range(2))
    assert first == second


def paths(before: onnx.ModelProto | ir.Model, after: onnx.ModelProto | ir.Model, side: int = 0) -> list[str]:
    groups, places = groups_of(scopes_of(diff(before, after))[side])
    return [groups[place].path for place in places]


def test_modules_come_from_names() -> None:
    chain = named("/encoder/layer.0/a", "/encoder/layer.0/b", "/encoder/layer.1/c", "/encoder/layer.1/d", "e")
    assert paths(chain, chain) == ["encoder/layer.0"] * 2 + ["encoder/layer.1"] * 2 + [""]


def test_modules_come_from_the_metadata_of_torch() -> None:
    graph = ir.from_proto(named("a", "b", "c", "d"))
    for each, last in zip(graph.graph, ("0", "0", "1", "1"), strict=True):
        scopes = ["", "net", f"net.layer.{last}", each.name]
        each.metadata_props["pkg.torch.onnx.name_scopes"] = str(scopes)
    assert paths(graph, graph) == ["net/layer.0"] * 2 + ["net/layer.1"] * 2


def test_metadata_that_is_no_list_is_no_module() -> None:
    graph = ir.from_proto(named("a", "b"))
    for each in graph.graph:
        each.metadata_props["pkg.torch.onnx.name_scopes"] = "__import__('os').getcwd()"
    assert paths(graph, graph) == ["", ""]


def test_the_outermost_module_is_no_group() -> None:
    graph = ir.from_proto(named("a", "b"))
    for each in graph.graph:
        each.metadata_props["pkg.torch.onnx.name_scopes"] = str(["", each.name])
    assert paths(graph, graph) == ["", ""]


def test_names_of_any_depth() -> None:
    deep = named("/m" * 1900 + "/a", "/m" * 1900 + "/b", "c")
    assert paths(deep, deep)[2] == ""


def test_groups_that_are_in_the_way_are_left_out() -> None:
    chain = named("/a/b/one", "/a/b/two", "/c/d/lone", "end")
    assert paths(chain, chain) == ["a.b", "a.b", "", ""]


def test_nodes_without_a_module_are_where_they_were_made_from() -> None:
    before = named("/encoder/layer.0/a", "/encoder/layer.0/b", "/encoder/layer.1/c", "/encoder/layer.1/d")
    after = ir.from_proto(named("fused0", "fused1"))
    for each, origins in zip(after.graph, ("0/a 0/b", "1/c 1/d"), strict=True):
        each.metadata_props["tersor.from"] = json.dumps([f"/encoder/layer.{name}" for name in origins.split()])
        each.metadata_props["tersor.by"] = '["some-pass"]'
    assert paths(before, after, side=1) == ["encoder/layer.0", "encoder/layer.1"]


def test_a_long_chain_is_cut_into_parts_that_fit_each_other() -> None:
    before, after = named(*(f"n{i}" for i in range(700))), named(*(f"n{i}" for i in range(100, 700)))
    ours, theirs = paths(before, after), paths(before, after, side=1)
    assert (ours[0], ours[125], ours[-1]) == ("part 1", "part 2", "part 6")
    assert ours[100:] == theirs
