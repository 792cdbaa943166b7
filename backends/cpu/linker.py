"""Linking code for a processor of another architecture than this machine's."""

from __future__ import annotations

import platform
import shutil

from optimizer.errors import TargetError
from optimizer.target import Cpu

__all__ = ["TRIPLES", "cross_linker"]

TRIPLES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
"""What LLVM and Debian's cross tools call an architecture under Linux."""
_EMULATIONS = {"x86_64": "elf_x86_64", "aarch64": "aarch64linux"}


def cross_linker(cpu: Cpu) -> list[str]:
    """The command that makes a shared library of object files, without `-o`; empty where the system's compiler does it.

    A linker is enough, no libraries for the other architecture are needed: what the kernels call is resolved by the
    process that loads them.

    Raises:
        TargetError: No such linker is installed, or there is none: macOS is linked for on macOS alone.
    """
    if not cpu.foreign:
        return []
    if cpu.name.startswith("apple-"):
        raise TargetError(f"code for {cpu.name!r} can be linked on macOS alone: optimize the model there")
    of_binutils = f"{TRIPLES[cpu.architecture]}-ld"
    candidates = ([of_binutils], ["ld.lld", "-m", _EMULATIONS[cpu.architecture]])
    for command in candidates:
        program = shutil.which(command[0])
        if program:
            return [program, *command[1:], "-shared"]
    raise TargetError(
        f"target 'cpu:{cpu.name}' is {cpu.architecture} code, and this machine ({platform.machine()}) has no linker "
        f"for it; install {of_binutils} (Debian: binutils-{TRIPLES[cpu.architecture].replace('_', '-')}) or ld.lld"
        " (Debian: lld), or optimize on the machine itself"
    )
