"""From a module whose memory is planned to a native library: what TVM's virtual machine and processors run."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tvm
from tvm import relax

from backends.relax.codegen import write_library
from backends.relax.memory import Workspace
from backends.relax.scratch import ScratchCensus

__all__ = ["NativeCode"]

_T = relax.transform

_AFTER_MEMORY_PLAN = (
    _T.StaticPlanBlockMemory(),  # of what has no known size before the run
    _T.LowerAllocTensor(),
    _T.KillAfterLastUse(),
    _T.LowerRuntimeBuiltin(),
    _T.ComputePrimValue(),
    _T.VMShapeLower(),
    _T.AttachGlobalSymbol(),
)


@dataclass(frozen=True)
class NativeCode:
    """The end of a build: see `backends.relax.build.Ending`.

    Attributes:
        target: what code is generated for.
        lowering: TVM's name for the passes that turn scheduled kernels into what code is generated from.
        library: the file to write.
        linker: the command that links it; empty for the system's compiler.
    """

    target: tvm.target.Target
    lowering: str
    library: Path
    linker: Sequence[str] = ()

    def __call__(self, module: tvm.IRModule) -> dict[str, list[Workspace]]:
        """Write the library; gives what each kernel takes for itself."""
        census = ScratchCensus(self.library.with_suffix(".scratch"))
        module = tvm.transform.Sequential(_AFTER_MEMORY_PLAN)(module)
        link = partial(_link, self.linker) if self.linker else None
        with tvm.transform.PassContext(instruments=[census]):
            write_library(module, self.target, self.lowering, self.library, link)
        return census.collect()


def _link(command: Sequence[str], output: str, objects: Sequence[str]) -> None:
    """Make a shared library.

    Raises:
        RuntimeError: the linker fails; its own words.
    """
    done = subprocess.run([*command, "-o", output, *objects], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
