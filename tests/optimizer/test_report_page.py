"""The report as a page, and the figures behind its charts: work, memory and energy of a run."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer import Report, load, optimize
from optimizer.activation_memory import ActivationMemory
from optimizer.energy import estimate_energy
from optimizer.errors import InputError
from optimizer.ir.costs import model_costs
from optimizer.ir.usage import measure_usage
from optimizer.report import NearMissRow
from optimizer.report_page.charts import Part, line_chart, parts_bar
from optimizer.usage import OperatorUsage, Usage
from tests.optimizer.build import INT64, model, node, perceptron, value

CACHE = 1 << 20


def usage_of(proto: onnx.ModelProto, shapes: dict[str, list[int]] | None = None) -> Usage:
    return measure_usage(ir.from_proto(proto), CACHE, shapes)


def row(usage: Usage, operator: str) -> OperatorUsage:
    (found,) = (each for each in usage.operators if each.operator == operator)
    return found


# --- What a run needs ---


def test_usage_of_each_operator() -> None:
    usage = usage_of(perceptron(), {"x": [5, 32]})
    first, second = 32 * 64, 64 * 8
    assert row(usage, "MatMul") == OperatorUsage(
        "MatMul", "float32", 2, 2 * 5 * (first + second), 4 * (first + second), 4 * 5 * (32 + 64 + 64 + 8)
    )
    assert row(usage, "Add") == OperatorUsage("Add", "float32", 1, 5 * 64, 4 * 64, 4 * 5 * (64 + 64))
    assert usage.flops == model_costs(ir.from_proto(perceptron()), {"x": [5, 32]}).flops


def test_the_peak_of_memory_is_that_of_the_costs() -> None:
    usage = usage_of(perceptron(), {"x": [5, 32]})
    assert usage.memory == (4 * 5 * 96, 4 * 5 * 128, 4 * 5 * 128, 4 * 5 * 72)
    assert usage.peak_node == "bias"
    assert max(usage.memory) == model_costs(ir.from_proto(perceptron()), {"x": [5, 32]}).peak_activation_bytes


def test_a_gather_reads_only_its_rows() -> None:
    table = np.random.default_rng(0).standard_normal((1000, 16)).astype(np.float32)
    gather = model(
        [node("Gather", ["table", "i"], ["y"])], [value("i", [3], INT64)], [value("y", [3, 16])], {"table": table}
    )
    assert row(usage_of(gather), "Gather").weight_bytes == 4 * 3 * 16


def test_a_value_that_is_read_twice_by_a_node_moves_once() -> None:
    square = model([node("Mul", ["x", "x"], ["y"])], [value("x", [10])], [value("y", [10])])
    assert row(usage_of(square), "Mul").moved_bytes == 4 * (10 + 10)


def test_long_timelines_are_thinned_out_and_keep_their_peak() -> None:
    nodes = [node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(1000)]
    nodes.insert(500, node("Expand", ["t0", "wide"], ["side"]))
    chain = model(nodes, [value("t0", [4])], [value("t1000", [4])], {"wide": np.array([100, 4], dtype=np.int64)})
    usage = usage_of(chain)
    assert len(usage.memory) < 400
    assert max(usage.memory) == 4 * (100 * 4 + 4 + 4)
    assert usage.peak_node == "Expand_side"


# --- Energy ---


def make_usage(**figures: int) -> Usage:
    facts = {"nodes": 1, "flops": 0, "weight_bytes": 0, "moved_bytes": 0, **figures}
    return Usage((OperatorUsage("MatMul", "float32", **facts),), (1000,), "n", CACHE)


def test_energy_of_arithmetic_is_that_of_the_source() -> None:
    energy = estimate_energy(make_usage(flops=10**12))
    assert energy.arithmetic == pytest.approx((0.9 + 3.7) / 2)
    assert energy.total == energy.arithmetic


def test_weights_that_do_not_fit_the_cache_come_from_memory() -> None:
    small, large = (estimate_energy(make_usage(weight_bytes=size)) for size in (CACHE, CACHE + 1))
    assert small.weights == pytest.approx(CACHE * 100e-12 / 8)
    assert large.weights == pytest.approx((CACHE + 1) * 1.95e-9 / 8)


def test_types_have_energies_of_their_own() -> None:
    rows = [OperatorUsage("Add", dtype, 1, 10**12, 0, 0) for dtype in ("int8", "float16", "float32", "float8_e4m3fn")]
    energies = [estimate_energy(Usage((each,), (), "", CACHE)).arithmetic for each in rows]
    assert energies == pytest.approx([0.115, 0.75, 2.3, 2.3])


# --- The page ---


@pytest.fixture(scope="module")
def report() -> Report:
    compiled = optimize(perceptron(), "onnx", progress=False)
    compiled.profile(np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32), repeats=1)
    return compiled.report


def test_the_page_has_every_part(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for part in (
        "verified against ONNX Runtime",
        "Where the work of a run goes",
        "Memory of a run",
        "Horowitz",
        "from DRAM if all of them",
        "as measured",
        "MatMul",
    ):
        assert part in page
    ElementTree.fromstring(page[page.index("<main>") : page.index("</main>") + 7])


def test_the_page_says_what_is_allocated(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "unknown.html")
    memory = ActivationMemory(arena=3 << 20, outputs=4096, scratch=2 << 20, threads=2, least=3 << 20)
    dataclasses.replace(report, memory=memory).save(tmp_path / "known.html")
    unknown, known = ((tmp_path / f"{name}.html").read_text() for name in ("unknown", "known"))
    assert "<b>5 MiB</b><span>memory of a run</span>" in known
    assert "As it was compiled: memory of a run: 5 MiB (arena 3 MiB" in known
    assert "memory of a run" not in unknown


def test_the_page_needs_nothing_from_elsewhere(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "default-src 'none'" in page
    for word in ("<script", "src=", "href=", "url(", "@import"):
        assert word not in page


def test_names_are_escaped(report: Report, tmp_path: Path) -> None:
    evil = "<img src=x>"
    strange = Report(
        evil, evil, report.before, report.after, notes=(evil,), near_misses=(NearMissRow(evil, evil, evil),)
    )
    strange.save(tmp_path / "report.html")
    assert "<img" not in (tmp_path / "report.html").read_text()


def test_the_data_has_the_energy_and_its_model(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text())
    assert data == report.to_dict()
    energy = data["energy"]
    assert "ISSCC 2014" in energy["model"]
    assert energy["after"]["total"] == pytest.approx(
        energy["after"]["arithmetic"] + energy["after"]["weights"] + energy["after"]["activations"]
    )
    assert energy["before"]["total"] > 0
    assert len(energy["assumptions"]) > 3
    with pytest.raises(InputError, match=r"saved as .html or .json, not as 'report.txt'"):
        report.save("report.txt")


def test_a_loaded_model_has_the_same_figures(tmp_path: Path) -> None:
    compiled = optimize(perceptron(), "onnx", progress=False)
    compiled.save(tmp_path / "model.tersor")
    loaded = load(tmp_path / "model.tersor").report
    assert (loaded.usage, loaded.usage_before) == (compiled.report.usage, compiled.report.usage_before)
    assert loaded.energy == compiled.report.energy


def test_a_report_without_figures_says_nothing_of_them(report: Report) -> None:
    bare = Report("onnx", "float32", report.before, report.after)
    assert bare.to_dict()["energy"] is None
    assert "energy" not in str(bare)
    assert Report.from_dict({k: v for k, v in bare.to_dict().items() if k not in ("usage", "usage_before")}) == bare


def test_near_misses_are_told_once_a_reason(report: Report) -> None:
    misses = tuple(NearMissRow("fuse-attention", f"n{i}", "the mask has rank 5", ("a",)) for i in range(3))
    told = Report("onnx", "float32", report.before, report.after, near_misses=misses)
    assert "fuse-attention did not fire at n0 and 2 more: the mask has rank 5" in str(told)
    assert Report.from_dict(told.to_dict()).near_misses == misses


def test_many_near_misses_do_not_fill_the_screen(report: Report) -> None:
    misses = tuple(NearMissRow("fuse-attention", "n", f"reason {i}") for i in range(30))
    told = str(Report("onnx", "float32", report.before, report.after, near_misses=misses))
    assert told.count("did not fire") == 11
    assert "and 20 more reasons why a fusion did not fire" in told


def test_an_energy_with_unknown_sizes_is_a_lower_bound(report: Report) -> None:
    assert "estimated energy of a run: at least" in str(optimize(open_ended(), "onnx", verify="off").report)
    assert "estimated energy of a run: at least" not in str(optimize(closed(), "onnx", verify="off").report)


def open_ended() -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], [value("x", ["n"])], [value("y", ["n"])])


def closed() -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], [value("x", [7])], [value("y", [7])])


def test_charts_of_nothing() -> None:
    for chart in (line_chart([("none", [])], str, "nodes"), parts_bar([]), parts_bar([Part("zero", 0, "0 J")])):
        ElementTree.fromstring(f"<div>{chart}</div>")
