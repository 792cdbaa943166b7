"""One name, three spellings: `fuse-attention`, `fuse_attention.py`, `FuseAttention`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import passes
from optimizer.pass_manager import format_pipeline, parse_pipeline
from passes.registry import PASSES

FOLDER = Path(passes.__path__[0])
NOT_PASSES = {"__init__", "pipelines", "registry"}


@pytest.mark.parametrize("name", PASSES)
def test_one_name_three_spellings(name: str) -> None:
    class_ = PASSES[name]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
    assert class_.__name__ == "".join(word.capitalize() for word in name.split("-"))
    assert class_.__module__ == f"passes.{name.replace('-', '_')}"


def test_every_file_is_a_pass_and_every_pass_has_a_file() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - NOT_PASSES
    assert files == {name.replace("-", "_") for name in PASSES}


def test_the_table_is_sorted() -> None:
    assert list(PASSES) == sorted(PASSES)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_frozen_has_a_docstring_and_prints_back(name: str) -> None:
    class_ = PASSES[name]
    assert dataclasses.is_dataclass(class_)
    assert class_.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert class_.__doc__
    (parsed,) = parse_pipeline(name, PASSES)
    assert parsed == class_()
    assert format_pipeline([parsed]) == name
