"""The CUDA program of scheduled kernels."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import tvm
from tvm import tirx

from backends.gpu.device import DeviceCode, device_code
from backends.gpu.tensor_instructions import with_instructions
from optimizer.gpus import Gpu

__all__ = ["cuda_code", "cuda_target"]

_LITERALS = {r"\binff\b": "__int_as_float(0x7f800000)", r"\bnanf (?=\))": "__int_as_float(0x7fffffff)"}
"""TVM writes an infinite number of 16 bits as `-inff`, which is no literal in C++."""
_BOUNDS = re.compile(r"__launch_bounds__\((\d+)\)")


def cuda_target(gpu: Gpu) -> tvm.target.Target:
    """TVM's name for the architecture."""
    return tvm.target.Target({"kind": "cuda", "arch": gpu.name}).with_host(tvm.target.Target("llvm"))


def cuda_code(kernels: Mapping[str, tirx.PrimFunc], gpu: Gpu) -> DeviceCode:
    """Generate CUDA for scheduled kernels (see `backends.gpu.launch.scheduled`).

    A kernel says how many of its blocks a multiprocessor should hold at least: one. Left to itself, the compiler
    guesses a number, and spills registers to reach it.
    """
    code = device_code(kernels, cuda_target(gpu))
    text = _BOUNDS.sub(r"__launch_bounds__(\1, 1)", code.source)
    for written, meant in _LITERALS.items():
        text = re.sub(written, meant, text)
    return dataclasses.replace(code, source=with_instructions(text))
