"""Translations that are parsed when needed: the exporter lists the same, and what it asks for is what it was."""

from typing import Any

import pytest
from onnxscript.values import TracedOnnxFunction
from torch.onnx._internal.exporter._registration import ONNXRegistry

from optimizer.frontends.translations import parsed_when_needed

FUNCTIONS: Any = TracedOnnxFunction


def test_the_same_translations_are_listed_and_few_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    plain = FUNCTIONS.function_ir

    def count(function: Any) -> Any:
        parsed.append(function)
        return plain.__get__(function)

    counted = property(count)
    monkeypatch.setattr(FUNCTIONS, "function_ir", counted)
    every = ONNXRegistry.from_torchlib().functions
    assert len(parsed) > 100
    parsed.clear()
    with parsed_when_needed():
        quick = ONNXRegistry.from_torchlib().functions
    assert not parsed
    assert FUNCTIONS.function_ir is counted
    assert {op: [m.onnx_function for m in metas] for op, metas in every.items()} == {
        op: [m.onnx_function for m in metas] for op, metas in quick.items()
    }


def test_what_else_is_asked_is_parsed() -> None:
    function: Any = ONNXRegistry.from_torchlib().functions["aten::relu"][0].onnx_function
    name, domain = function.function_ir.name, function.function_ir.domain
    with parsed_when_needed(), parsed_when_needed():
        assert (function.function_ir.name, function.function_ir.domain) == (name, domain)
    assert function.function_ir.name == name


def test_another_version_of_onnxscript_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FUNCTIONS, "function_ir", None)
    with parsed_when_needed():
        assert FUNCTIONS.function_ir is None
