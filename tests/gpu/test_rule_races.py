"""Races between the threads of a block and accesses out of bounds, looked for by oclgrind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.rule_run import CASES
from tests.gpu.test_races import BAD, VENDORS

pytestmark = [
    pytest.mark.without_device,
    pytest.mark.skipif(not VENDORS.is_dir(), reason="the set-up could not install oclgrind (tests/gpu/pocl.py)"),
]


@pytest.mark.parametrize("name", CASES)
def test_rules_neither_race_nor_leave_their_buffers(name: str) -> None:
    environment = {**os.environ, "OCL_ICD_VENDORS": str(VENDORS), "OCLGRIND_DATA_RACES": "1", "PYOPENCL_NO_CACHE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.rule_run", name],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-2000:]
    assert not any(bad in told for bad in BAD), told[-2000:]
