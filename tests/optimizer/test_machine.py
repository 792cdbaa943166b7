"""A saved model that this machine cannot run is refused before its code is loaded."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from optimizer import load, optimize
from optimizer.errors import ArtifactError
from optimizer.machine import machine_needed, why_unusable
from optimizer.target import CPUS
from tests.optimizer.build import perceptron


def test_code_for_this_machine_is_usable() -> None:
    assert why_unusable(machine_needed("cpu")) == ""
    assert machine_needed("onnx") == {}
    assert why_unusable({}) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architecture": "pdp11"}, "compiled for architecture 'pdp11', this machine has"),
        ({"system": "Plan 9"}, "compiled for system 'Plan 9', this machine has"),
        ({"vector_bytes": 4096}, "it needs vector registers of 4096 bytes, this CPU's have"),
        ({"extensions": ["avx9000", "sse"]}, "it uses avx9000, which this CPU lacks"),
        ({"extensions": None}, "it does not say which CPU it needs"),
    ],
)
def test_what_is_missing_is_named(change: dict[str, Any], reason: str) -> None:
    assert reason in why_unusable({**machine_needed("cpu"), **change})


def test_a_named_cpu_asks_for_its_vector_width() -> None:
    needed = machine_needed("cpu:x86-64")
    assert needed["vector_bytes"] == CPUS["x86-64"].vector_bytes
    assert needed["extensions"] == []


PRODUCTS = {
    "avx512_bf16": [n for n, cpu in CPUS.items() if cpu.bfloat16],
    "avx512_vnni": [n for n, cpu in CPUS.items() if cpu.vnni],
    "avx512vbmi": [n for n, cpu in CPUS.items() if cpu.vbmi],
}


@pytest.mark.parametrize(("extension", "name"), [(e, name) for e, names in PRODUCTS.items() for name in names])
def test_a_named_cpu_asks_for_its_products(extension: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = machine_needed(f"cpu:{name}")
    monkeypatch.setattr("optimizer.machine.detect_cpu", lambda: CPUS["x86-64-v4"])
    others = [each for each in (*PRODUCTS, "avx512f") if each != extension]
    monkeypatch.setattr("optimizer.machine._extensions", lambda: others)
    assert why_unusable(needed) == f"it uses {extension}, which this CPU lacks"


def test_loading_checks_it(tmp_path: Path) -> None:
    path = tmp_path / "model.tersor"
    optimize(perceptron(), "onnx", progress=False).save(path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(entries["manifest.json"])
    manifest["machine"] = {**machine_needed("cpu"), "system": "Plan 9"}
    entries["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(ArtifactError, match=r"cannot run here: .*'Plan 9'.*: compile it again on this machine"):
        load(path)
