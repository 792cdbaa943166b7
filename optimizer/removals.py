"""Which pass removed which original node: an instrument of the pass manager."""

from __future__ import annotations

import onnx_ir as ir

from optimizer.ir.provenance import origins
from optimizer.ir.walk import all_nodes
from optimizer.pass_manager import Pass

__all__ = ["RemovalRecorder"]


class RemovalRecorder:
    """Notes when the last node that stands for an original node goes away.

    Attributes:
        removed_by: The name of the pass, by the label of the original node.
    """

    def __init__(self) -> None:
        self.removed_by: dict[str, str] = {}
        self._alive: set[str] | None = None

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Note what is there at first."""
        del pass_
        if self._alive is None:
            self._alive = _originals(model)

    def after_pass(self, pass_: Pass, model: ir.Model, modified: bool, seconds: float) -> None:
        """Note what is gone."""
        del seconds
        if not modified:
            return
        assert self._alive is not None, "before_pass comes first"
        alive = _originals(model)
        for label in self._alive - alive:
            self.removed_by[label] = pass_.name
        for label in alive & self.removed_by.keys():
            del self.removed_by[label]
        self._alive = alive


def _originals(model: ir.Model) -> set[str]:
    return {label for node in all_nodes(model) for label in origins(node)}
