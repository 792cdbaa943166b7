"""What the documents show works: Python blocks run in order, commands are understood, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_blocks_are_found() -> None:
    assert blocks("python", "a\n```python\nx = 1\n```\n```\ny\n```\n```python\nz\n```\n") == ["x = 1\n", "z\n"]


def test_python_blocks_of_the_readme_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, *rest = blocks("python", README.read_text())
    assert len(rest) == 3
    namespace: dict[str, Any] = {"model": torch.nn.Linear(4, 3).eval(), "x": torch.randn(2, 4)}
    exec(compile(first, "README.md, first block", "exec"), namespace)
    assert np.shape(namespace["y"]) == (2, 3)

    namespace = {}
    for number, code in enumerate(rest, start=2):
        exec(compile(code, f"README.md, Python block {number}", "exec"), namespace)
    assert {path.name for path in tmp_path.iterdir()} == {"model.tersor", "model.onnx", "diff.html"}
    run_commands(tmp_path)


def run_commands(folder: Path) -> None:
    """Each command of the console blocks, on the files that the Python blocks left."""
    commands = [line[2:] for block in blocks("console", README.read_text()) for line in block.splitlines()]
    assert len(commands) == 10
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "tersor"
        code = "import sys; from optimizer.cli import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "TERSOR_CACHE": str(folder / "cache")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip()


@pytest.mark.parametrize("document", sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.md")))
def test_links_and_make_targets_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", text)) | set(re.findall(r"^make ([a-z-]+)$", text, flags=re.MULTILINE))
    assert named <= targets


def test_every_decision_is_in_the_list_of_decisions() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("0*.md"))


@pytest.mark.parametrize("document", sorted(path.name for path in (ROOT / "docs" / "decisions").glob("0*.md")))
def test_a_decision_has_context_decision_and_consequence(document: str) -> None:
    text = (ROOT / "docs" / "decisions" / document).read_text()
    places = [text.index(f"**{part}.**") for part in ("Context", "Decision", "Consequence")]
    assert places == sorted(places)
    for path in re.findall(r"`((?:optimizer|passes|backends|tests|models|requirements)/[\w/.-]*)`", text):
        assert (ROOT / path).exists(), path


def test_paths_named_in_contributing_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"`((?:optimizer|passes|backends|tests|models|docs)/[\w/.-]*)`", text):
        if "something" not in path and "NAME" not in path:
            assert (ROOT / path).exists(), path
