"""Say a model in an older opset, for a runtime that knows no newer one.

    Gelu(x)                         ->  Mul(0.5, Mul(x, Add(1, Erf(...))))
    ReduceMean(x, axes)             ->  ReduceMean<axes>(x)
    Split<num_outputs = 2>(x)       ->  Split(x, sizes)

1. An operator that the older opset lacks is replaced by its body, if ONNX defines it by others.
2. An operator that says the same in another form is brought to that form; the axes, sizes and pads that move from
   inputs to attributes must be constant.
3. An attribute that the older version lacks falls away where it has its default.

What then does not fit the older opset is refused with the node's name and the reason. The types in which the older
operators compute count as well. A model that is old enough already stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

import onnx
import onnx_ir as ir

from optimizer.errors import UnsupportedError
from optimizer.ir.analysis import changed
from optimizer.ir.census import FUSED
from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.inline import inline_call
from optimizer.ir.provenance import label
from optimizer.ir.query import has_reference
from optimizer.ir.shapes import Shapes
from optimizer.ir.walk import nested_graphs
from optimizer.pass_manager import Pass
from passes.lowering.adapters import adapt
from passes.lowering.bodies import body_of
from passes.lowering.fit import misfit, schema_of

__all__ = ["OLDEST", "LowerOpset"]

OLDEST = 13
"""Since when `axes` of Squeeze, Unsqueeze and ReduceSum are inputs and Softmax is along one axis."""
_DEEPEST = 8
"""Bodies hold operators that have bodies; no chain of them in ONNX is nearly as long."""


@dataclasses.dataclass(frozen=True)
class LowerOpset(Pass):
    """Lowers the opset of the standard operators.

    Attributes:
        to: The newest opset that the runtime knows, at least 13.
    """

    to: int = 17

    @property
    def sets_opset(self) -> bool:
        """It is what this pass is for."""
        return True

    @property
    def undoes(self) -> frozenset[str]:
        """The fused operators that the older opset lacks."""
        return frozenset(op_type for op_type in FUSED if schema_of(op_type, self.to) is None)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lower the graph and the functions.

        Raises:
            UnsupportedError: Something cannot be said in the older opset.
        """
        if self.to < OLDEST:
            raise UnsupportedError(f"opset {self.to} is too old: {OLDEST} and later ones can be written")
        owners: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        newer = [owner for owner in owners if _opset(owner, model) > self.to]
        if not newer:
            return ir.passes.PassResult(model, False)
        for _ in range(_DEEPEST):
            if not rewrite_nodes(model, partial(_expand, self.to)).modified:
                break
        rewrite_nodes(model, partial(_adapt, self.to))
        self._check(model, newer)
        for owner in newer:
            owner.opset_imports[""] = self.to
        model.ir_version = _ir_version(model)
        changed(model)
        return ir.passes.PassResult(model, True)

    def _check(self, model: ir.Model, newer: list[ir.Graph | ir.Function]) -> None:
        shapes = Shapes(model)
        for node in _nodes(newer):
            reason = misfit(node, self.to, shapes)
            if reason is not None:
                raise UnsupportedError(
                    f"{node.op_type} cannot be said in opset {self.to} ({reason}): ask for a later one",
                    node=label(node),
                )


def _opset(owner: ir.Graph | ir.Function, model: ir.Model) -> int:
    return int(owner.opset_imports.get("", model.opset_imports.get("", 0)))


def _nodes(owners: list[ir.Graph | ir.Function]) -> Iterator[ir.Node]:
    for owner in owners:
        for graph in nested_graphs(owner.graph if isinstance(owner, ir.Function) else owner):
            yield from (node for node in graph if node.domain == "")


def _expand(to: int, editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Put the body of an operator that the older opset lacks in its place."""
    if node.domain != "" or scope.opset <= to or has_reference(node) or schema_of(node.op_type, to) is not None:
        return
    function = body_of(node, scope.opset, editor.shapes)
    if function is not None:
        inline_call(editor, node, function)


def _adapt(to: int, editor: Editor, scope: Scope, node: ir.Node) -> None:
    if node.domain == "" and scope.opset > to and misfit(node, to, editor.shapes) is not None:
        adapt(editor, scope, node, to)


def _ir_version(model: ir.Model) -> int:
    """The oldest that knows the opsets, so that the runtime reads the file."""
    imports = [onnx.helper.make_opsetid(*item) for item in model.opset_imports.items() if item[0] in _KNOWN]
    return int(onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True))


_KNOWN = ("", "ai.onnx.ml", "ai.onnx.preview.training")
