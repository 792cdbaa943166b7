"""Every pass that runs in a test of this folder is watched, whoever runs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from optimizer.ir import edit
from optimizer.ir.fingerprint import fingerprint
from optimizer.pass_manager import Pass


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "unwatched: passes in this test may be given or give invalid models")


@pytest.fixture(autouse=True)
def watch_passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hold `modified` against the fingerprint, and check the model, before and after every pass.

    The weights are small here: each that loses its last user is freed, as large ones are.
    """
    if request.node.get_closest_marker("unwatched"):
        yield
        return
    monkeypatch.setattr(edit, "_WEIGHT_BYTES", 0)
    run = ir.passes.PassBase.__call__

    def watched(pass_: Any, model: Any) -> ir.passes.PassResult:
        if not isinstance(pass_, Pass):
            return run(pass_, model)
        before = fingerprint(model)
        onnx.checker.check_model(ir.to_proto(model))
        result = run(pass_, model)
        assert result.modified == (fingerprint(model) != before), f"{pass_}: modified={result.modified} is a lie"
        onnx.checker.check_model(ir.to_proto(model))
        return result

    monkeypatch.setattr(ir.passes.PassBase, "__call__", watched)
    yield
