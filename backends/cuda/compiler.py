"""NVIDIA's compilers: nvcc of an installed CUDA toolkit, else NVRTC, a library that comes from PyPI.

Both end in `ptxas`, which says what each kernel takes: registers, spilled bytes, shared memory. NVRTC needs the
headers of the CUDA runtime and of CCCL, which are packages of their own; `pip install tersor[cuda]` brings all three.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

from optimizer.errors import CompileError, TargetError

__all__ = ["Compiled", "Compiler", "Nvcc", "Nvrtc", "Resources", "compiler", "resources_of"]

_NVRTC = "nvidia-cuda-nvrtc"
_HEADERS = ("nvidia-cuda-runtime", "nvidia-cuda-cccl")
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Resources:
    """What a kernel takes, as `ptxas` says.

    Attributes:
        registers: 32-bit ones of a thread.
        spilled_bytes: stored and loaded because there were too few registers.
        shared_bytes: of a block.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Compiled:
    """A compiled program.

    Attributes:
        cubin: for the device.
        ptx: the instructions before `ptxas` chose registers, as text.
        kernels: by name.
    """

    cubin: bytes
    ptx: str
    kernels: dict[str, Resources]


class Compiler(Protocol):
    """Turns CUDA C++ into code for an architecture."""

    name: str

    def compile(self, source: str, architecture: str) -> Compiled:
        """Compile a program.

        Args:
            source: its text.
            architecture: as `sm_80`.

        Raises:
            CompileError: the compiler does not take it; its own words.
        """
        ...


def compiler() -> Compiler:
    """The compiler of this machine.

    Raises:
        TargetError: there is none.
    """
    found = Nvcc.found() or Nvrtc.found()
    if found is None:
        raise TargetError("CUDA code needs nvcc on the PATH or NVRTC: pip install tersor[cuda]")
    return found


class Nvcc:
    """The CUDA toolkit's own compiler; it needs a C++ compiler, too."""

    name = "nvcc"

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def found(cls) -> Nvcc | None:
        """As the PATH has it."""
        path = shutil.which("nvcc")
        return None if path is None else cls(path)

    def compile(self, source: str, architecture: str) -> Compiled:
        """See `Compiler.compile`."""
        with tempfile.TemporaryDirectory() as folder:
            program, cubin = Path(folder) / "kernels.cu", Path(folder) / "kernels.cubin"
            program.write_text(source)
            command = [self.path, f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "--keep", "--keep-dir", folder]
            done = subprocess.run(
                [*command, "-o", str(cubin), str(program)],
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_SECONDS,
            )
            if done.returncode:
                raise CompileError(f"nvcc: {(done.stderr or done.stdout).strip()[:2000]}")
            (ptx,) = Path(folder).glob("*.ptx")
            return Compiled(cubin.read_bytes(), ptx.read_text(), resources_of(done.stdout + done.stderr))


class Nvrtc:
    """The compiler as a library."""

    name = "nvrtc"

    def __init__(self, library: Path, headers: Sequence[Path]) -> None:
        self.library, self.headers = library, list(headers)

    @classmethod
    def found(cls) -> Nvrtc | None:
        """As the packages from PyPI have it; `None` if one of them is missing."""
        try:
            libraries = [
                f for f in metadata.files(_NVRTC) or [] if re.match(r"libnvrtc\.so\.\d+$|nvrtc64_\d+_0\.dll$", f.name)
            ]
            headers = [f for name in _HEADERS for f in metadata.files(name) or []]
        except metadata.PackageNotFoundError:
            return None
        tops = [Path(str(f.locate())).parent for f in headers if f.name == "cuda_fp16.h"]
        tops += [Path(str(f.locate())).parents[2] for f in headers if f.as_posix().endswith("/cuda/std/cstdint")]
        return cls(Path(str(libraries[0].locate())), tops) if libraries and len(tops) == 2 else None

    def compile(self, source: str, architecture: str) -> Compiled:
        """See `Compiler.compile`."""
        cubin, log = self._run(source, architecture, "CUBIN", "--ptxas-options=-v")
        ptx, _ = self._run(source, architecture.replace("sm_", "compute_"), "PTX")
        return Compiled(cubin, ptx.rstrip(b"\0").decode(), resources_of(log))

    def _run(self, source: str, architecture: str, what: str, *options: str) -> tuple[bytes, str]:
        """Code of one form, and what the compiler said."""
        library = ctypes.CDLL(str(self.library))
        program = ctypes.c_void_p()
        text = source.encode()
        library.nvrtcCreateProgram(ctypes.byref(program), text, b"kernels.cu", 0, None, None)
        given = [f"--gpu-architecture={architecture}", *(f"-I{folder}" for folder in self.headers), *options]
        arguments = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
        try:
            failed = library.nvrtcCompileProgram(program, len(given), arguments)
            log = self._read(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            if failed:
                raise CompileError(f"nvrtc: {log.strip()[:2000]}")
            return self._read(library, program, what), log
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    @staticmethod
    def _read(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw


_KERNEL = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def resources_of(log: str) -> dict[str, Resources]:
    """What `ptxas -v` says of each kernel.

    Raises:
        CompileError: it says less than is expected of it.
    """
    found: dict[str, Resources] = {}
    pieces = _KERNEL.split(log)
    for name, words in zip(pieces[1::2], pieces[2::2], strict=True):
        spills, used, shared = _SPILLS.search(words), _USED.search(words), _SHARED.search(words)
        if spills is None or used is None:
            raise CompileError(f"ptxas does not say what {name} takes: {words.strip()[:200]}")
        spilled = int(spills[1]) + int(spills[2])
        found[name] = Resources(int(used[1]), spilled, int(shared[1]) if shared else 0)
    return found
