"""`tersor inspect`: what a model file or a saved compiled model holds."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from optimizer.text import count, size

__all__ = ["inspect_file", "show_inspection"]


def inspect_file(path: Path) -> dict[str, Any]:
    """Facts about an `.onnx` file or a saved model, as JSON types.

    Raises:
        ModelError, UnsupportedError: The `.onnx` file cannot be read.
        ArtifactError: The saved model cannot be read.
    """
    return _artifact(path) if zipfile.is_zipfile(path) else _onnx(path)


def show_inspection(facts: dict[str, Any]) -> RenderableType:
    """The same as text."""
    lines = [f"{facts['path']}: {facts['kind']}"]
    lines.extend(f"{kind[:-1]} {spec}" for kind in ("inputs", "outputs") for spec in facts[kind])
    if facts["kind"] == "ONNX model":
        costs = facts["costs"]
        least = "at least " if costs["symbolic"] else ""
        lines.append(f"opset {facts['opsets']}")
        lines.append(
            f"{costs['nodes']} nodes, {count(costs['parameters'])} parameters in {size(costs['bytes'])}, "
            f"{least}{count(costs['flops'])} FLOPs, {least}{size(costs['peak_activation_bytes'])} of activations"
        )
        return Group(*lines, _table("operators", facts["operators"], str))
    lines.append(f"target {facts['target']}, backend {facts['backend']}")
    if facts["machine"]:
        lines.append("needs " + ", ".join(f"{key} {_needed(value)}" for key, value in facts["machine"].items()))
    lines.append("made with " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    return Group(*lines, _table("parts", facts["parts"], size), facts["report_text"])


def _needed(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def _table(title: str, rows: dict[str, int], text: Any) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, text(value))
    return table


def _onnx(path: Path) -> dict[str, Any]:
    from optimizer.frontends import load_model
    from optimizer.ir.costs import model_costs
    from optimizer.ir.specs import specs_of
    from optimizer.ir.walk import all_nodes

    model = load_model(path)
    operators = Counter(f"{node.domain}::{node.op_type}".removeprefix("::") for node in all_nodes(model))
    return {
        "kind": "ONNX model",
        "path": str(path),
        "opsets": dict(model.opset_imports),
        "inputs": [str(spec) for spec in specs_of(model.graph.inputs)],
        "outputs": [str(spec) for spec in specs_of(model.graph.outputs)],
        "operators": dict(operators.most_common()),
        "costs": model_costs(model).to_dict(),
    }


def _artifact(path: Path) -> dict[str, Any]:
    from optimizer.artifact import read_report, signature_of
    from optimizer.artifact_reader import ArtifactReader

    reader = ArtifactReader(path)
    report = read_report(reader)
    return {
        "kind": "compiled model",
        "path": str(path),
        "target": reader.text("target"),
        "backend": reader.text("backend"),
        "machine": dict(reader.mapping("machine")),
        "versions": dict(reader.mapping("versions")),
        "inputs": [str(spec) for spec in signature_of(reader, "inputs")],
        "outputs": [str(spec) for spec in signature_of(reader, "outputs")],
        "parts": {name: reader.size(name) for name in reader.names},
        "report": report.to_dict(),
        "report_text": str(report),
    }
