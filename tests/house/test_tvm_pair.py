"""TVM and its FFI are pinned as a pair: with another FFI, `Schedule.tensorize` kills the process."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAIR = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}


@pytest.mark.parametrize("distribution", PAIR)
def test_the_pair_is_pinned_and_installed(distribution: str) -> None:
    pin = re.escape(f"{distribution}=={PAIR[distribution]}")
    for file in ("setup.py", "requirements/constraints.txt"):
        assert re.search(rf"{pin}\b", (ROOT / file).read_text()), f"{file} does not pin {distribution}"
    assert importlib.metadata.version(distribution) == PAIR[distribution]


def test_tensorize_survives() -> None:
    command = [sys.executable, "-m", "tests.house.tensorize_smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2080"]
