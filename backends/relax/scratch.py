"""What kernels take for themselves while they run: read off the code, where TVM has turned buffers into workspaces.

Small buffers of a kernel are on the stack. The others are taken from a pool of the thread (`TVMBackendAllocWorkspace`)
and given back; which ones is decided by TVM's `LowerTVMBuiltin`, after it has merged buffers. So they are counted right
behind that pass.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from backends.relax.memory import Workspace
from backends.relax.size_formula import formula
from backends.relax.size_value import Formula
from backends.relax.values import Refused

__all__ = ["ScratchCensus"]

_TAKE = "tirx.TVMBackendAllocWorkspace"
_GIVE_BACK = "tirx.TVMBackendFreeWorkspace"
_PASS = "tirx.LowerTVMBuiltin"
_PACKED = "__tvm_ffi_"
_BYTES = 2


@tvm.ir.instrument.pass_instrument
class ScratchCensus:
    """Listens to the compiler: `workspaces` is filled while a module is built.

    Args:
        other: the file in which a copy of this process leaves what it finds.

    Attributes:
        workspaces: kernel -> what it takes and gives back, in order; of kernels that take something.
    """

    def __init__(self, other: Path) -> None:
        self.workspaces: dict[str, list[Workspace]] = {}
        self._process = os.getpid()
        self._other = other

    def collect(self) -> dict[str, list[Workspace]]:
        """Everything, with what a copy of this process has found, which builds a part of the module."""
        if self._other.exists():
            found = json.loads(self._other.read_text())
            self.workspaces |= {name: [Workspace(**w) for w in taken] for name, taken in found.items()}
            self._other.unlink()
        return self.workspaces

    def run_after_pass(self, module: tvm.IRModule, info: Any) -> None:
        """Called by TVM behind every pass."""
        if info.name != _PASS:
            return
        for var, function in module.functions.items():
            if isinstance(function, tirx.PrimFunc):
                found = _workspaces(function.body)
                if found:
                    self.workspaces[var.name_hint.removeprefix(_PACKED)] = found
        if os.getpid() != self._process:
            plain = {name: [asdict(w) for w in taken] for name, taken in self.workspaces.items()}
            self._other.write_text(json.dumps(plain))


def _workspaces(body: tirx.Stmt) -> list[Workspace]:
    tasks: dict[Call, Formula] = {}

    def of_loop(loop: tirx.For) -> None:
        if loop.kind == tirx.ForKind.PARALLEL:
            inside: list[Call] = []
            tvm_ffi.structural_walk(loop.body, (Call, inside.append))
            tasks.update(dict.fromkeys(inside, _size(loop.extent)))

    tvm_ffi.structural_walk(body, (tirx.For, of_loop))
    result: list[Workspace] = []

    def of_call(call: Call) -> None:
        name = str(getattr(call.op, "name", ""))
        if name == _TAKE:
            result.append(Workspace(_size(call.args[_BYTES]), tasks.get(call, 0)))
        elif name == _GIVE_BACK:
            result.append(Workspace(None))

    tvm_ffi.structural_walk(body, (Call, of_call))
    return result


def _size(expr: tirx.Expr) -> Formula:
    try:
        return formula(expr)
    except Refused:  # no size that the graph knows: a lower bound
        return 1
