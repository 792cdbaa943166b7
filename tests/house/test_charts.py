"""The drawings of the benchmarks: well-formed, complete, and with everything at its place."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import charts, machine
from benchmarks.contestants import OPENVINO, ORT, PEERS, TERSOR, TORCH
from benchmarks.machine import Machine
from benchmarks.preparation import Workload
from benchmarks.rows import Row
from benchmarks.svg import Drawing
from optimizer.timing import Measurement

NAMESPACE = "{http://www.w3.org/2000/svg}"
ROOFS = Machine(1e11, 1e10, "ONNX Runtime", "a sum")


@pytest.fixture
def row() -> Row:
    workload = Workload([], Path("x.onnx"), 0, flops=1_000_000_000, weight_bytes=10_000_000, is_module=True)
    seconds = {ORT: 0.02, OPENVINO: 0.01, TERSOR: 0.02}
    measured = {name: Measurement([np.zeros(0)], [[each]]) for name, each in seconds.items()}
    return Row("a<b", workload, None, measured, {TORCH: "no torch module"})


def parsed(drawing: str) -> ElementTree.Element:
    root = ElementTree.fromstring(drawing)
    assert root.tag == f"{NAMESPACE}svg"
    return root


def shapes(root: ElementTree.Element, kind: str, style: str) -> list[ElementTree.Element]:
    return [each for each in root.iter(NAMESPACE + kind) if style in (each.get("class") or "").split()]


def words(root: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{NAMESPACE}text")]


def number(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name) or "nan")


def test_what_is_drawn_is_well_formed_and_inside() -> None:
    drawing = Drawing(100, 50, 'a "title" & more')
    drawing.text(1, 2, "<words>")
    drawing.rectangle(1, 2, 3, 4, "c0", "5 < 6")
    drawing.circle(1, 2, 3, "c1")
    root = parsed(str(drawing))
    assert root.get("viewBox") == "0 0 100 50"
    assert root.get("aria-label") == 'a "title" & more'
    assert "<words>" in words(root)
    assert [each.text for each in root.iter(f"{NAMESPACE}title")] == ["5 < 6"]
    assert len(shapes(root, "circle", "c1")) == 1


def test_every_style_that_a_chart_uses_is_defined(row: Row) -> None:
    for drawing in (charts.speed([row]), charts.roofline([row], ROOFS)):
        root = parsed(drawing)
        used = {style for each in root.iter() for style in (each.get("class") or "").split()}
        defined = set(re.findall(r"\.([a-z]+\d?) ", root.findtext(f"{NAMESPACE}style") or ""))
        assert used
        assert used <= defined


def test_bars_are_as_long_as_the_speed_and_end_at_one_where_both_are_as_fast(row: Row) -> None:
    faster = replace(row, measured={**row.measured, ORT: Measurement([], [[0.04]])})
    root = parsed(charts.speed([row, faster]))
    one = number(shapes(root, "line", "line")[0], "x1") - charts.LEFT
    bars = {"c0": [1.0, 2.0, 2**0.5], "c1": [0.5, 0.5, 0.5]}  # the last of each is the geometric mean
    for style, speeds in bars.items():
        key, *found = (number(each, "width") for each in shapes(root, "rect", style))
        assert key == 12
        assert found == pytest.approx([one * speed for speed in speeds], abs=0.2)
    assert len(shapes(root, "rect", "c2")) == 1  # torch.compile stands in the key alone
    assert words(root).count("torch.compile: no torch module") == 2
    assert words(root).count("a<b") == 2
    assert {f"over {peer}" for peer in PEERS} <= set(words(root))


def test_without_us_the_reason_is_ours(row: Row) -> None:
    peers = {name: each for name, each in row.measured.items() if name != TERSOR}
    alone = replace(row, measured=peers, absent={**row.absent, TERSOR: "optimize() failed"})
    assert "ONNX Runtime: optimize() failed" in words(parsed(charts.speed([alone])))
    assert shapes(parsed(charts.roofline([alone], ROOFS)), "circle", "c0") == []


def test_a_point_lies_below_the_roof_by_as_much_as_is_not_attained(row: Row) -> None:
    # 1e9 operations and 1e7 bytes: 100 a byte, beyond the ridge at 10; in 0.02 s, half of the 1e11 a second.
    root = parsed(charts.roofline([row], ROOFS))
    point = shapes(root, "circle", "c0")[0]
    slope, flat = shapes(root, "line", "line")
    decades = charts._Decades(charts._decades([10.0, 100.0]), charts._decades([1e11, 5e10]))
    assert (number(point, "cx"), number(point, "cy")) == pytest.approx(decades.at(100, 5e10), abs=0.1)
    assert (number(slope, "x2"), number(slope, "y2")) == pytest.approx(decades.at(10, 1e11), abs=0.1)
    assert number(flat, "y1") == number(flat, "y2") < number(point, "cy")
    assert number(slope, "y1") > number(slope, "y2")
    assert "1  a<b: 50 GFLOP/s, 50% of the roof" in words(root)


@pytest.mark.parametrize(("most", "last", "count"), [(1.0, 1.0, 5), (2.4, 2.25, 10), (7.3, 7.0, 8), (1e9, 0.0, 1)])
def test_ticks_are_round_and_few(most: float, last: float, count: int) -> None:
    ticks = charts._ticks(most)
    assert (ticks[-1], len(ticks)) == (last, count)


def test_the_roof_is_the_lower_of_both() -> None:
    assert (ROOFS.roof(1), ROOFS.roof(10), ROOFS.roof(1000)) == (1e10, 1e11, 1e11)
    assert "100 GFLOP/s (a product of matrices of 2048, by ONNX Runtime) and 10 GB/s (a sum over 512 MB)" in (
        ROOFS.sentence()
    )


def test_the_fastest_is_who_had_the_shortest_single_call() -> None:
    steady, lucky = Measurement([], [[0.2, 0.2], [0.2]]), Measurement([], [[0.9, 0.1], [0.9]])
    assert machine._fastest({"steady": steady, "lucky": lucky}) == ("lucky", 0.1)


@pytest.mark.slow
def test_the_roofs_are_measured() -> None:
    roofs = machine.measure(threads=1, rounds=1, size=64, rows=64)
    assert 1e6 < roofs.flops < 1e14
    assert 1e6 < roofs.bandwidth < 1e13
    assert roofs.flops_by in (ORT, OPENVINO, TERSOR)
