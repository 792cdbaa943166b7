"""Code for another architecture: compiled and saved with a linker for it, refused without one, never run here."""

from __future__ import annotations

import dataclasses
import os
import platform
import struct
from pathlib import Path

import numpy as np
import pytest

from backends.cpu.linker import cross_linker
from optimizer import load, optimize
from optimizer.cpus import CPUS
from optimizer.errors import ArtifactError, CompileError, TargetError
from optimizer.machine import machine_needed
from tests.optimizer.build import perceptron

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="here Arm is no foreign architecture")

LINKER = "aarch64-linux-gnu-ld"
MACHINE_OF_AARCH64 = 183
"""`e_machine` in the header of an ELF file."""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a linker into a folder that is searched first."""
    linker = folder / LINKER
    linker.write_text(f"#!/bin/sh\n{script}\n")
    linker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def linker(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that keeps the first object file: `LINKER -shared -o OUT OBJECT...`."""
    install(tmp_path_factory.mktemp("bin"), monkeypatch, 'cp "$4" "$3"')


@pytest.mark.usefixtures("linker")
def test_a_model_is_compiled_and_saved_but_not_run(tmp_path: Path) -> None:
    compiled = optimize(perceptron(), "cpu:neoverse-n1", progress=False)
    assert compiled.target == "cpu:neoverse-n1"
    refusal = "cannot run here: it was compiled for architecture 'aarch64', this machine has 'x86_64'"
    assert refusal in str(compiled.report.verification)
    assert compiled.report.verification.error is None
    x = np.ones((2, 32), np.float32)
    with pytest.raises(TargetError, match=refusal):
        compiled(x)
    with pytest.raises(TargetError, match=refusal):
        compiled.profile(x)
    compiled.save(tmp_path / "model.tersor")
    with pytest.raises(ArtifactError, match="cannot run here: it was compiled for architecture 'aarch64'"):
        load(tmp_path / "model.tersor")


@pytest.mark.usefixtures("linker")
def test_the_code_is_of_that_architecture(tmp_path: Path) -> None:
    compiled = optimize(perceptron(), "cpu:cortex-a76", progress=False)
    library = compiled._executable.parts()["kernels.so"]
    assert isinstance(library, Path)
    assert struct.unpack_from("<H", library.read_bytes(), 18) == (MACHINE_OF_AARCH64,)


def test_without_a_linker_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match=r"aarch64 code, .* no linker for it; install aarch64-linux-gnu-ld .*ld\.lld"):
        optimize(perceptron(), "cpu:neoverse-v1", progress=False)


def test_a_linker_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path, monkeypatch, "echo no space >&2; exit 1")
    with pytest.raises(CompileError, match="aarch64-linux-gnu-ld: no space"):
        optimize(perceptron(), "cpu:neoverse-n1", progress=False)


def test_macos_is_linked_for_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError, match="'apple-m1' can be linked on macOS alone"):
        cross_linker(CPUS["apple-m1"])
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert cross_linker(CPUS["apple-m1"]) == []


def test_lld_serves_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lld = tmp_path / "ld.lld"
    lld.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cross_linker(CPUS["neoverse-n1"]) == [str(lld), "-m", "aarch64linux", "-shared"]


def test_what_the_machine_has_to_be() -> None:
    needed = machine_needed("cpu:neoverse-n1")
    assert (needed["architecture"], needed["system"], needed["vector_bytes"]) == ("aarch64", "Linux", 16)
    assert not dataclasses.replace(CPUS["neoverse-n1"], name="native").foreign
