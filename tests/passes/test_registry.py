"""One name, three spellings; and pipelines that can be said as a string."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import passes
from optimizer.pass_manager import Pass, format_pipeline, parse_pipeline
from passes.pipelines import default_pipeline
from passes.registry import PASSES

HELPERS = {"attention", "contrib", "lowering", "pipelines", "quantization", "registry", "rotary", "tiling"}


def test_the_table_is_sorted_and_complete() -> None:
    assert list(PASSES) == sorted(PASSES)
    modules = {module.name for module in pkgutil.iter_modules(passes.__path__)} - HELPERS
    assert {name.replace("-", "_") for name in PASSES} == modules


@pytest.mark.parametrize("name", PASSES)
def test_a_name_is_spelled_three_ways(name: str) -> None:
    cls = PASSES[name]
    module = importlib.import_module(f"passes.{name.replace('-', '_')}")
    assert cls().name == name
    assert cls.__module__ == module.__name__
    assert getattr(module, name.title().replace("-", "")) is cls
    assert module.__doc__
    assert cls.__doc__


@pytest.mark.parametrize("name", PASSES)
def test_options_have_defaults_and_are_documented(name: str) -> None:
    pass_ = PASSES[name]()
    assert isinstance(pass_, Pass)
    for option in type(pass_).__dataclass_fields__:
        assert f"{option}:" in (type(pass_).__doc__ or "")


@pytest.mark.parametrize("kind", ["cpu", "onnx"])
def test_default_pipelines_print_back(kind: str) -> None:
    pipeline = default_pipeline(kind)
    assert parse_pipeline(format_pipeline(pipeline), PASSES) == pipeline
