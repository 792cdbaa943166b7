"""CUDA without a GPU: a driver whose device is the processor, and a compiler that turns kernels into code for it.

The driver (`host_driver.cpp`) checks each call and runs each kernel (`host_threads.h`), so that arguments, their order
and alignment, grids and memory are seen to be right. Tensor cores are emulated; of NVIDIA's driver it says nothing.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from backends import get_backend
from backends.cuda.compiler import Compiled
from optimizer import nvidia
from optimizer.target import Target
from tests.backends.running import Array
from tests.gpu.emulation import FUNCTIONS

__all__ = ["HostCompiler", "host_gpu", "library", "run_on_host"]

_HERE = Path(__file__).parent
_FOLDER = tempfile.TemporaryDirectory(prefix="tersor-driver-")
_KERNEL = re.compile(r'^extern "C" __global__ void (?:__launch_bounds__\((\d+), 1\) )?(\w+)\((.*)\) \{$', re.MULTILINE)
_PARAMETER = re.compile(r"(.*?)\s*(\*?)\s*(?:__restrict__ )?(\w+)$")


@cache
def library() -> Path:
    """The driver, compiled once."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    made = Path(_FOLDER.name) / "libcuda.so.1"
    _compile(_HERE / "host_driver.cpp", made)
    return made


def _compile(source: Path, made: Path) -> None:
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-w", f"-I{_HERE}", "-o", str(made), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]


class HostCompiler:
    """See `backends.cuda.compiler.Compiler`."""

    name = "host"

    def compile(self, source: str, architecture: str) -> Compiled:
        """Kernels as a shared library, with a function beside each that takes what a driver gives."""
        kernels = list(_KERNEL.finditer(source))
        with tempfile.TemporaryDirectory() as folder:
            text, made = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
            program = source[kernels[0].start() :].replace("__shared__ alignas(64)", "alignas(64) static")
            head = '#include "host_threads.h"\n' + (FUNCTIONS if "tersor_product_" in program else "")
            text.write_text(head + program + "".join(_launcher(k) for k in kernels))
            _compile(text, made)
            code = made.read_bytes()
        return Compiled(b"HOST" + b"\0" * 4 + struct.pack("q", len(code)) + code, "PTX", {})


def _launcher(kernel: re.Match[str]) -> str:
    threads, name, parameters = kernel.groups()
    given, sizes = [], []
    for number, parameter in enumerate(parameters.split(", ")):
        found = _PARAMETER.fullmatch(parameter)
        assert found is not None, parameter
        kind = found[1].replace("__restrict__", "").strip() + found[2]
        given.append(f"*({kind}*)p[{number}]")
        element = kind.removesuffix("*")
        sizes.append(f"sizeof({kind}) | (sizeof({element}) << 8)" if kind.endswith("*") else f"sizeof({kind})")
    return f"""
extern "C" const unsigned sizes_{name}[] = {{{", ".join([*sizes, "0"])}}};
extern "C" const unsigned threads_{name} = {threads or 1};
static void call_{name}(void** p) {{ {name}({", ".join(given)}); }}
extern "C" bool launch_{name}(void** p, const unsigned* grid, const unsigned* block) {{
  return run(call_{name}, p, grid, block);
}}
"""


@contextmanager
def host_gpu(capability: int = 80, count: int = 1, init: int = 0, *, compiler: bool = True) -> Iterator[ctypes.CDLL]:
    """The driver in the place of NVIDIA's, and the compiler, if wanted, in the place of nvcc."""
    nvidia._library.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvidia, "LIBRARY", str(library()))
        if compiler:
            patch.setattr("backends.cuda.backend.compiler", HostCompiler)
        for name, value in {"CAPABILITY": capability, "COUNT": count, "INIT": init}.items():
            patch.setenv(f"HOST_GPU_{name}", str(value))
        loaded = ctypes.CDLL(str(library()))
        for function in (loaded.host_calls, loaded.host_allocations, loaded.host_graphs):
            function.restype = ctypes.c_long
        loaded.host_forget()
        yield loaded
    nvidia._library.cache_clear()


def run_on_host(model: onnx.ModelProto, given: Sequence[Array], gpu: str = "sm_80") -> list[Array]:
    """A model's CUDA program by that driver: PoCL takes minutes to compile what tensor cores do for large tiles."""
    graph = ShapeInferencePass()(ir.from_proto(model)).model
    with host_gpu(int(gpu.removeprefix("sm_"))):
        executable = get_backend("cuda").compile(graph, Target.parse(f"cuda:{gpu}"), fallback="error")
        return executable.run(list(given), 1)
