"""Same model, options and versions: same bytes, whatever the order of sets is in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEASURED = {"report.json", "manifest.json"}  # they hold the times that it took

CODE = """if True:
    import hashlib, json, sys, zipfile
    from optimizer import optimize
    from tests.optimizer.faulty_passes import model
    compiled = optimize(model(), sys.argv[1], progress=False)
    compiled.save(sys.argv[2])
    with zipfile.ZipFile(sys.argv[2]) as parts:
        print(json.dumps({n: hashlib.sha256(parts.read(n)).hexdigest() for n in parts.namelist()}))
"""


@pytest.mark.parametrize("target", ["cpu", "onnx"])
def test_two_processes_write_the_same_bytes(target: str, tmp_path: Path) -> None:
    hashes = [_hashes(target, tmp_path / f"{seed}.tersor", seed) for seed in ("1", "2")]
    assert hashes[0].keys() == hashes[1].keys()
    differing = {name for name, value in hashes[0].items() if hashes[1][name] != value}
    assert differing <= MEASURED


def _hashes(target: str, path: Path, hash_seed: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, target, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found
