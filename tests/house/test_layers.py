"""The layers of the architecture hold, and importing the package costs next to nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "tvm", "onnxruntime", "onnxscript", "transformers", "passes", "backends", "rich", "hypothesis")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_import_layers_hold() -> None:
    command = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    done = run("-c", command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["optimizer", "optimizer.errors", "optimizer.target"])
def test_importing_is_light(module: str) -> None:
    done = run("-c", f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
