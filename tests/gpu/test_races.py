"""Races and accesses out of bounds, looked for by oclgrind, which interprets the kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.checked_run import cases

VENDORS = Path(sys.prefix) / "oclgrind" / "vendors"
BAD = ("data race", "Invalid read", "Invalid write", "Uninitialized", "Divergence")

pytestmark = [
    pytest.mark.without_device,
    pytest.mark.skipif(not VENDORS.is_dir(), reason="the set-up could not install oclgrind (tests/gpu/pocl.py)"),
]


def _checked(name: str) -> str:
    environment = {**os.environ, "OCL_ICD_VENDORS": str(VENDORS), "OCLGRIND_DATA_RACES": "1", "PYOPENCL_NO_CACHE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.checked_run", name],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", cases())
def test_kernels_neither_race_nor_leave_their_buffers(name: str) -> None:
    told = _checked(name)
    assert not any(bad in told for bad in BAD), told[-2000:]


def test_a_race_is_seen() -> None:
    assert "data race" in _checked("race")
