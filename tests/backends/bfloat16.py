"""bfloat16 models against float64 arithmetic, with bounds that follow from how they are computed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from optimizer.executable import Executable
from optimizer.target import Target
from tests.backends.running import compiled, parse

Array = npt.NDArray[Any]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TARGETS = ("cpu", "cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:generic")
"""The machine at hand, and processors that have to widen, of three vector lengths."""

_ROUNDED = 2.0**-8
"""Relative error of rounding to 8 bits."""
_SUMMED = 2.0**-24
"""Relative error of an operation in float32."""


def usable(target: str) -> str:
    """The target; the test is skipped where this machine cannot run its code."""
    cpu, here = Target.parse(target).cpu, Target.parse("cpu").cpu
    assert cpu is not None and here is not None
    if cpu.vector_bytes > here.vector_bytes:
        pytest.skip("this machine's vectors are shorter")
    return target


def random(rng: np.random.Generator, *shape: int) -> Array:
    """Normally distributed numbers, rounded."""
    return rng.standard_normal(shape).astype(BFLOAT16)


def agrees(
    text: str,
    weights: Mapping[str, Array],
    inputs: Sequence[Array],
    wanted: Array,
    size: Array,
    terms: int,
    target: str = "cpu",
    threads: int = 2,
) -> Executable:
    """Compile, run, and demand that sums were taken in float32 and rounded once.

    Args:
        text: the graph.
        weights: its initializers.
        inputs: its inputs.
        wanted: the result, in float64.
        size: the same of the magnitudes: the sum of the absolute values of all that is added up.
        terms: the number of operations on the way to an element.
        target: what it is compiled for.
        threads: how many run it.
    """
    executable = compiled(parse(text, weights), target)
    (y,) = executable.run(list(inputs), threads)
    assert (y.dtype, y.shape) == (BFLOAT16, wanted.shape)
    bound = _ROUNDED * np.abs(wanted) + 1.01 * terms * _SUMMED * size
    error = np.abs(y.astype(np.float64) - wanted)
    assert (error <= bound).all(), f"{(error / bound).max()} times the bound"
    return executable


def instructions(executable: Executable, folder: Path) -> str:
    """The native code in assembly; the test is skipped where nothing can show it."""
    tool = shutil.which("objdump")
    if tool is None:
        pytest.skip("objdump is not installed")
    library = executable.parts()["kernels.so"]
    path = library if isinstance(library, Path) else folder / "kernels.so"
    if not isinstance(library, Path):
        path.write_bytes(bytes(library))
    return subprocess.run([tool, "-d", str(path)], check=True, capture_output=True, text=True).stdout


def native(executable: Executable, folder: Path) -> bool:
    """Whether pairs are multiplied by the processor's own instruction."""
    return "vdpbf16ps" in instructions(executable, folder)
