"""From scheduled kernels to a native module: LLVM works on both halves of them at a time, in two processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.relax import vm_build

from optimizer.child_process import LONGEST_SECONDS

__all__ = ["write_library"]

Link = Callable[[str, Sequence[str]], None]

_LEAST_KERNELS = 8
"""From so many on, a second process is worth its start."""

_LEAST_PART = 2


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
    least, *halves = _parts(kernels)
    objects = [library.with_suffix(f".{number}.o") for number in range(len(halves))]
    child = _start(halves[1], target, lowering, objects[1]) if halves else 0
    native = None if least is None else tirx.build(least, target=target, pipeline=lowering)
    if halves:
        _write(halves[0], target, lowering, objects[0])
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:  # what is wrong with it is then told here
            _write(halves[1], target, lowering, objects[1])
    _linked(builder, target, native).export_library(str(library), fcompile=link, addons=[str(o) for o in objects])
    for file in objects:
        file.unlink()


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
        _write(kernels, target, lowering, file)
        status = 0
    finally:
        os._exit(status)


def _write(kernels: tvm.IRModule, target: tvm.target.Target, lowering: str, file: Path) -> None:
    """Write an object file."""
    tirx.build(kernels, target=target, pipeline=lowering).write_to_file(str(file))


def _parts(kernels: tvm.IRModule | None) -> list[tvm.IRModule | None]:
    """Nothing but all kernels where they are few; else the least two, and two halves that take about as long.

    The virtual machine finds what is in the object files of the halves through the library that is made of the first
    part. TVM would take a single kernel for a program, and give it an entry.
    """
    if kernels is None or len(kernels.functions) < _LEAST_KERNELS or not hasattr(os, "fork"):
        return [kernels]
    sizes = {var: _size(function) for var, function in kernels.functions.items()}
    ordered = sorted(sizes, key=lambda var: (-sizes[var], var.name_hint))
    least = {var: kernels.functions[var] for var in ordered[-_LEAST_PART:]}
    halves: list[dict[tvm.ir.GlobalVar, tirx.PrimFunc]] = [{}, {}]
    totals = [0, 0]
    for var in ordered[:-_LEAST_PART]:
        lighter = totals.index(min(totals))
        halves[lighter][var] = kernels.functions[var]
        totals[lighter] += sizes[var]
    return [tvm.IRModule(part, attrs=kernels.attrs) for part in (least, *halves)]


def _size(function: tirx.PrimFunc) -> int:
    """What LLVM has to do for a kernel is about in proportion to its stores, those into registers included."""
    found: list[tirx.BufferStore] = []
    tvm_ffi.structural_walk(function.body, (tirx.BufferStore, found.append))
    return len(found)
