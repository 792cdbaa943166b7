"""Code for many kernels is generated in two processes, and is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest

from tests.backends.running import check, parse


def chain(kernels: int) -> onnx.ModelProto:
    """As many different products, one after the other."""
    rng = np.random.default_rng(0)
    sizes = [16 + 8 * i for i in range(kernels + 1)]
    weights = {f"w{i}": (rng.standard_normal((sizes[i], sizes[i + 1])) / 8).astype(np.float32) for i in range(kernels)}
    lines = "\n".join(f"y{i + 1} = MatMul(y{i}, w{i})" for i in range(kernels))
    return parse(f"g (float[3, {sizes[0]}] y0) => (float[3, {sizes[-1]}] y{kernels}) {{ {lines} }}", weights)


@pytest.mark.parametrize("kernels", [1, 12])
def test_few_and_many_kernels_compute_the_same(kernels: int) -> None:
    check(chain(kernels), [np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)])


SCRIPT = """
import json, os, subprocess, sys
from pathlib import Path
import onnx
import onnx_ir as ir
from backends.relax import client, codegen
from backends.relax.worker import handle
from onnx_ir.passes.common import ShapeInferencePass
from optimizer.target import Target

folder, how, kernels = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
model = ShapeInferencePass()(ir.load(folder / "model.onnx")).model
requests = []
client.PROCESS.ask = lambda request: requests.append(request) or {"plan": None}
client.compile_graph(model, Target.parse("cpu").cpu, folder / "kernels.so", linker=[], allow_fallback=False)
started = []
real = codegen._start

def start(*args):
    started.append(sorted(var.name_hint for var in args[0].functions))
    if how == "dies":
        child = os.fork()
        if not child:
            os._exit(1)
        return child
    return real(*args)

codegen._start = start
if how == "alone":
    codegen._LEAST_KERNELS = 1000
handle(requests[0])
symbols = subprocess.run(["nm", "-D", "--defined-only", folder / "kernels.so"], capture_output=True, text=True).stdout
print(json.dumps({
    "second": started,
    "symbols": sorted(line.split()[-1] for line in symbols.splitlines()),
    "files": sorted(path.name for path in folder.iterdir()),
}))
"""


def built(folder: Any, how: str, kernels: int = 12) -> dict[str, Any]:
    folder.mkdir()
    onnx.save(chain(kernels), folder / "model.onnx")
    command = [sys.executable, "-c", SCRIPT, str(folder), how, str(kernels)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["files"] == ["kernels.so", "model.onnx"]
    return result


def test_each_kernel_is_built_once_whoever_builds_it(tmp_path: Any) -> None:
    two, alone, dies = (built(tmp_path / how, how) for how in ("two", "alone", "dies"))
    assert alone["second"] == []
    (second,) = two["second"]
    assert 5 <= len(second) <= 7
    assert two["symbols"] == alone["symbols"] == dies["symbols"]
    assert sum("matmul" in symbol for symbol in two["symbols"]) == 12


def test_few_kernels_are_not_worth_a_process(tmp_path: Any) -> None:
    assert built(tmp_path / "few", "two", kernels=2)["second"] == []
