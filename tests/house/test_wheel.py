"""What the wheel holds: three packages with all their files, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("backends", "optimizer", "passes")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The wheel, built from a copy of the tree so that the tree stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, folder)
    for package in (*PACKAGES, "models", "tests"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(folder)], check=True, timeout=300)
    (path,) = folder.glob("tersor-*.whl")
    return ZipFile(path)


def metadata(wheel: ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_top_level_is_the_three_packages(wheel: ZipFile) -> None:
    assert metadata(wheel, "top_level.txt").split() == list(PACKAGES)
    roots = {PurePosixPath(path).parts[0] for path in wheel.namelist()}
    assert {root for root in roots if not root.endswith(".dist-info")} == set(PACKAGES)


def test_every_file_of_the_packages_is_shipped(wheel: ZipFile) -> None:
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    files = {
        path.relative_to(ROOT).as_posix() for path in paths if path.is_file() and path.suffix not in (".pyc", ".md")
    }
    shipped = {path for path in wheel.namelist() if ".dist-info/" not in path}
    assert shipped == files


def test_the_packages_are_typed(wheel: ZipFile) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel.namelist())


def test_the_command_and_the_metadata(wheel: ZipFile) -> None:
    assert "tersor = optimizer.cli:main" in metadata(wheel, "entry_points.txt")
    described = metadata(wheel, "METADATA")
    for line in ("Name: tersor", "Requires-Python: >=3.11", "License-Expression: Apache-2.0"):
        assert line in described.splitlines()
    for extra in ("torch", "testing", "bench"):
        assert f"Provides-Extra: {extra}" in described
