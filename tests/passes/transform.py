"""Before and Expected in ONNX text."""

from __future__ import annotations

import onnx_ir as ir

from optimizer.ir.fingerprint import fingerprint
from optimizer.ir.near_miss import RewriteResult
from optimizer.pass_manager import Pass
from optimizer.testing import check_pass, difference
from passes.remove_unused import RemoveUnused

__all__ = ["assert_becomes", "assert_stays", "read", "reasons"]


def read(text: str, opset: int = 23) -> ir.Model:
    """A model from the text of its graph, and of functions behind it."""
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}, "local" : 1]> {text}')


def assert_becomes(pass_: Pass, before: str, expected: str, *, opset: int = 23) -> ir.Model:
    """The pass keeps its contract on `before`, and what is left without dead nodes is `expected`, without its own.

    Returns:
        The model after the pass, with its dead nodes.
    """
    result = check_pass(pass_, read(before, opset))
    cleaned, wanted = result.clone(), read(expected, opset)
    RemoveUnused()(cleaned)
    RemoveUnused()(wanted)
    delta = difference(wanted, cleaned, types=False)
    assert not delta, delta
    return result


def assert_stays(pass_: Pass, text: str, *, opset: int = 23) -> None:
    """The pass keeps its contract on a model, and leaves it as it is."""
    model = read(text, opset)
    result = check_pass(pass_, model)
    assert fingerprint(result) == fingerprint(model), difference(model, result)


def reasons(pass_: Pass, text: str) -> list[str]:
    """Why the pass, which leaves the model as it is, nearly did something."""
    result = pass_(read(text))
    assert isinstance(result, RewriteResult)
    assert not result.modified
    return [miss.reason for miss in result.near_misses]
