"""What must not be in the tree, and how long a module may be."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_MODULE = 350
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|farm|root|home|tmp/venv)/\S")
ADDRESS = re.compile(r"https?://(?!www\.apache\.org/licenses|www\.w3\.org/)[\w.-]+\.[a-z]{2,}")


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def found(pattern: re.Pattern[str], files: list[Path]) -> list[str]:
    lines = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if pattern.search(line):
                lines.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    return lines


def test_no_path_of_one_machine() -> None:
    files = [file for file in tracked() if file.name != Path(__file__).name]
    assert found(MACHINE_PATHS, files) == []


def test_set_up_names_no_host() -> None:
    files = tracked("setup.py", "*.toml", "Makefile", ".ci/*", "requirements/*")
    assert found(ADDRESS, files) == []


def test_the_patterns_find_what_they_are_for() -> None:
    assert MACHINE_PATHS.search("open('" + "/wo" + "rk/main/x')")
    assert ADDRESS.search("see ht" + "tps://example.org/simple")
    assert not ADDRESS.search("ht" + "tps://www.apache.org/licenses/LICENSE-2.0")


def test_modules_are_short() -> None:
    folders = ("optimizer", "passes", "backends", "models", "benchmarks", "examples")
    files = tracked(*(f"{folder}/*.py" for folder in folders))
    lengths = {file: len(file.read_text().splitlines()) for file in files}
    assert {str(file.relative_to(ROOT)): n for file, n in lengths.items() if n > LONGEST_MODULE} == {}


def test_every_package_folder_is_a_package() -> None:
    folders = {file.parent for file in tracked("optimizer/*.py", "passes/*.py", "backends/*.py", "models/*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
