"""From scheduled kernels to a native module: LLVM works on both halves of them at a time, in two processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import tvm
from tvm import relax, tirx
from tvm.relax import vm_build

from optimizer.child_process import LONGEST_SECONDS

__all__ = ["write_library"]

Link = Callable[[str, Sequence[str]], None]

_LEAST_KERNELS = 8
"""From so many on, a second process is worth its start."""


def write_library(
    module: tvm.IRModule, target: tvm.target.Target, lowering: str, library: Path, link: Link | None = None
) -> None:
    """Generate code and link it.

    Args:
        module: The virtual machine's functions and the scheduled kernels.
        target: What to generate code for.
        lowering: TVM's name for the passes that turn kernels into what code is generated from.
        library: The file to write.
        link: What links it, given the file and the object files; the system's compiler if `None`.
    """
    builder = relax.ExecBuilder()
    kernels = vm_build._filter_tir(vm_build._vmcodegen(builder, module, exec_mode="bytecode"))
    first, second = _halves(kernels)
    if first is None or second is None:
        native = None if first is None else tirx.build(first, target=target, pipeline=lowering)
        _linked(builder, target, native).export_library(str(library), fcompile=link)
        return
    other = library.with_suffix(".second.o")
    child = _start(second, target, lowering, other)
    native = tirx.build(first, target=target, pipeline=lowering)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:  # what is wrong with it is then told here
        tirx.build(second, target=target, pipeline=lowering).write_to_file(str(other))
    _linked(builder, target, native).export_library(str(library), fcompile=link, addons=[str(other)])
    other.unlink()


def _linked(
    builder: relax.ExecBuilder, target: tvm.target.Target, native: tvm.runtime.Module | None
) -> vm_build.VMExecutable:
    return vm_build.VMExecutable(vm_build._ffi_api.VMLink(builder, target, native, [], {}))


def _start(kernels: tvm.IRModule, target: tvm.target.Target, lowering: str, file: Path) -> int:
    """Write an object file in a copy of this process; gives its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    signal.alarm(int(LONGEST_SECONDS))  # nobody else would end it if it hangs
    try:
        tirx.build(kernels, target=target, pipeline=lowering).write_to_file(str(file))
        status = 0
    finally:
        os._exit(status)


def _halves(kernels: tvm.IRModule | None) -> tuple[tvm.IRModule | None, tvm.IRModule | None]:
    """Kernels in two modules that take about as long; one that is small stays whole."""
    if kernels is None or len(kernels.functions) < _LEAST_KERNELS or not hasattr(os, "fork"):
        return kernels, None
    sizes = {var: len(str(function)) for var, function in kernels.functions.items()}
    halves: list[dict[tvm.ir.GlobalVar, tirx.PrimFunc]] = [{}, {}]
    totals = [0, 0]
    for var in sorted(sizes, key=lambda var: (-sizes[var], var.name_hint)):
        lighter = totals.index(min(totals))
        halves[lighter][var] = kernels.functions[var]
        totals[lighter] += sizes[var]
    first, second = (tvm.IRModule(half, attrs=kernels.attrs) for half in halves)
    return first, second
