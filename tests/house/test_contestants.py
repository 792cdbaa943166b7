"""The contestants of the suite: who cannot take part says why, and the others do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import contestants, machine
from benchmarks.contestants import OPENVINO, ORT, TORCH, compete_without_failures, why_absent
from optimizer.timing import Outputs

ROOT = Path(__file__).parents[2]


def working() -> Callable[[], Outputs]:
    return lambda: [np.ones(4)]


def broken() -> Callable[[], Outputs]:
    raise ValueError("no such | file:\n" + "x" * 200)


def test_a_contestant_that_fails_does_not_stop_the_others() -> None:
    measured, failed = compete_without_failures({"good": working, "bad": broken}, rounds=1)
    assert list(measured) == ["good"]
    assert failed.keys() == {"bad"}
    assert failed["bad"].startswith("ValueError: no such / file: xxx")
    assert failed["bad"].endswith("x...")
    assert len(failed["bad"]) == contestants.LONGEST_REASON + 3


def test_known_reasons_to_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_absent(TORCH, is_module=False) == "no torch module"
    assert why_absent(ORT, is_module=False) is None
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert why_absent(TORCH, is_module=True) == "no C++ compiler"
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert why_absent(TORCH, is_module=True) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert why_absent(OPENVINO, is_module=True) == "not installed"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert why_absent(OPENVINO, is_module=True) is None


def test_openvino_computes_what_onnx_runtime_does(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="requirements/peers.txt")
    path = tmp_path / "product.onnx"
    random = np.random.default_rng(0)
    onnx.save(machine.product(random.standard_normal((8, 8), np.float32)), path)
    inputs = [random.standard_normal((8, 8), np.float32)]
    builds = {
        ORT: partial(contestants.onnx_runtime, path, inputs, 1),
        OPENVINO: partial(contestants.openvino, path, inputs, 1),
    }
    builds["in bfloat16"] = partial(contestants.openvino, path, inputs, 1, "bfloat16")
    measured, failed = compete_without_failures(builds, rounds=1)
    assert failed == {}
    np.testing.assert_allclose(measured[OPENVINO].outputs[0], measured[ORT].outputs[0], rtol=1e-5, atol=1e-5)
    off = np.abs(measured["in bfloat16"].outputs[0] - measured[ORT].outputs[0]).max()
    assert off < 0.1
    if "avx512_bf16" in Path("/proc/cpuinfo").read_text():  # elsewhere OpenVINO takes no heed of the hint
        assert off > 1e-4


def test_openvino_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="requirements/peers.txt")
    path = tmp_path / "product.onnx"
    onnx.save(machine.product(np.eye(2, dtype=np.float32)), path)
    code = (
        "import sys; from pathlib import Path; import numpy; from benchmarks.contestants import openvino\n"
        f"openvino(Path({str(path)!r}), [numpy.eye(2, dtype='float32')], 1)()\n"
        "print([name for name, module in sys.modules.items() if name.startswith('openvino_telemetry') and module])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
