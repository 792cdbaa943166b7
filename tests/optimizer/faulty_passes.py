"""Twelve passes with one fault each, as passes have them, and a model on which each fault shows."""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.query import array, is_op
from optimizer.pass_manager import Pass

__all__ = ["FAULTS", "MODEL", "Fault", "model"]

MODEL = """<ir_version: 10, opset_import: ["" : 23]>
g (float[batch,4,8] x, bool[batch,1,4,4] mask, float[8,8] w, float[8] b, float[8] g)
=> (float[batch,4,8] y, float[batch,4,8] z) {
    h = MatMul(x, w)
    i = Add(h, b)
    n = LayerNormalization(i, g)
    a = Attention<q_num_heads = 2, kv_num_heads = 2>(n, n, n, mask)
    s = Sub(a, x)
    t = Transpose<perm = [0,2,1]>(s)
    u = Transpose<perm = [0,2,1]>(t)
    r = Relu(u)
    k = Shape<start = 0, end = 1>(x)
    rest = Constant<value_ints = [4,8]>()
    size = Concat<axis = 0>(k, rest)
    y = Reshape(r, size)
    l = Gelu(s)
    z = Mul(l, g)
}"""


def model() -> ir.Model:
    """The model, with random weights."""
    made = ir.from_onnx_text(MODEL)
    rng = np.random.default_rng(7)
    for value in made.graph.inputs[2:]:
        assert value.shape is not None
        value.const_value = ir.tensor(rng.standard_normal(value.shape.numpy()).astype(np.float32), name=value.name)
        made.graph.inputs.remove(value)
        made.graph.register_initializer(value)
    return made


class _Rewrite(Pass):
    """Applies `visit` to every node."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return rewrite_nodes(model, self.visit)

    def visit(self, editor: Editor, scope: Scope, node: ir.Node) -> None:
        raise AssertionError("a subclass says what to do")


@dataclasses.dataclass(frozen=True)
class DropBias(_Rewrite):
    """Takes an Add of a constant for a no-op."""

    def visit(self, editor: Editor, scope: Scope, node: ir.Node) -> None:
        if is_op(node, "Add") and array(node.inputs[1]) is not None and node.inputs[0] is not None:
            editor.bypass(node, node.inputs[0])


@dataclasses.dataclass(frozen=True)
class SwapOperands(_Rewrite):
    """Sorts the operands of a Sub as if it were commutative."""

    def visit(self, editor: Editor, scope: Scope, node: ir.Node) -> None:
        left, right = node.inputs[:2] if is_op(node, "Sub") else (None, None)
        if left is not None and right is not None and (left.name or "") < (right.name or ""):
            editor.substitute(node, ir.node("Sub", inputs=[right, left]))


@dataclasses.dataclass(frozen=True)
class IgnoreMask(_Rewrite):
    """Leaves out the mask of an Attention."""

    def visit(self, editor: Editor, scope: Scope, node: ir.Node) -> None:
        if is_op(node, "Attention") and len(node.inputs) > 3 and node.inputs[3] is not None:
            editor.substitute(node, ir.node("Attention", inputs=node.inputs[:3], attributes=node.attributes))


@dataclasses.dataclass(frozen=True)
class FreezeBatch(_Rewrite):
    """Replaces a symbolic size by the one of the example: wrong with every other."""

    def visit(self, editor: Editor, scope: Scope, node: ir.Node) -> None:
        if is_op(node, "Shape"):
            editor.fold(scope, node, [np.array([2], np.int64)])


@dataclasses.dataclass(frozen=True)
class ClaimNothing(_Rewrite):
    """Changes the model and says that it did not."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rewrite_nodes(model, self.visit)
        return ir.passes.PassResult(model, modified=False)

    def visit(self, editor: Editor, scope: Scope, node: ir.Node) -> None:
        if is_op(node, "Relu") and node.inputs[0] is not None:
            editor.substitute(node, ir.node("LeakyRelu", inputs=node.inputs, attributes={"alpha": 0.0}))


@dataclasses.dataclass(frozen=True)
class ClaimMuch(Pass):
    """Says that it changed the model and did not."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, modified=True)


@dataclasses.dataclass(frozen=True)
class UndoFusion(_Rewrite):
    """Takes a Gelu apart, correctly."""

    def visit(self, editor: Editor, scope: Scope, node: ir.Node) -> None:
        if not is_op(node, "Gelu") or node.inputs[0] is None:
            return
        root = editor.constant(scope, node, "root", np.array(np.sqrt(2), np.float32))
        one = editor.constant(scope, node, "one", np.array(1, np.float32))
        half = editor.constant(scope, node, "half", np.array(0.5, np.float32))
        x = node.inputs[0]
        assert node.graph is not None
        parts = [ir.node("Div", inputs=[x, root])]
        parts.append(ir.node("Erf", inputs=[parts[-1].outputs[0]]))
        parts.append(ir.node("Add", inputs=[parts[-1].outputs[0], one]))
        parts.append(ir.node("Mul", inputs=[parts[-1].outputs[0], x]))
        for part in parts:
            part.outputs[0].name = editor.fresh_name("part")
            node.graph.insert_before(node, part)
        editor.substitute(node, ir.node("Mul", inputs=[parts[-1].outputs[0], half]))


@dataclasses.dataclass(frozen=True)
class LoseEpsilon(_Rewrite):
    """Gives a normalization another epsilon: a small error."""

    def visit(self, editor: Editor, scope: Scope, node: ir.Node) -> None:
        if is_op(node, "LayerNormalization") and "epsilon" not in node.attributes:
            attributes = {**node.attributes, "epsilon": ir.AttrFloat32("epsilon", 1e-2)}
            editor.substitute(node, ir.node("LayerNormalization", inputs=node.inputs, attributes=attributes))


@dataclasses.dataclass(frozen=True)
class WrongAxis(_Rewrite):
    """Merges two transpositions into one that is not their product."""

    def visit(self, editor: Editor, scope: Scope, node: ir.Node) -> None:
        before = node.inputs[0].producer() if is_op(node, "Transpose") and node.inputs[0] is not None else None
        if is_op(before, "Transpose") and before is not None:
            merged = ir.node("Transpose", inputs=before.inputs, attributes={"perm": [0, 2, 1]})
            editor.substitute(node, merged, [before])
            editor.remove_if_unused(before)


@dataclasses.dataclass(frozen=True)
class ChangeInterface(Pass):
    """Renames an output."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        output = model.graph.outputs[0]
        if output.name == "renamed":
            return ir.passes.PassResult(model, modified=False)
        output.name = "renamed"
        return ir.passes.PassResult(model, modified=True)


@dataclasses.dataclass(frozen=True)
class Fail(_Rewrite):
    """Does not expect an operator."""

    def visit(self, editor: Editor, scope: Scope, node: ir.Node) -> None:
        if node.op_type == "Gelu":
            raise KeyError(node.op_type)


@dataclasses.dataclass(frozen=True)
class NameAtRandom(_Rewrite):
    """Gives another result in each run: what it adds depends on how often it ran."""

    _count: ClassVar[itertools.count[int]] = itertools.count()

    def visit(self, editor: Editor, scope: Scope, node: ir.Node) -> None:
        if is_op(node, "Mul") and "done" not in node.metadata_props and node.inputs[0] is not None:
            number = next(self._count)
            extra = editor.constant(scope, node, "extra", np.array(1 + number * 2.0**-23, np.float32))
            scaled = ir.node("Mul", inputs=[node.inputs[0], extra], metadata_props={"done": "1"})
            scaled.outputs[0].name = editor.fresh_name("scaled")
            assert node.graph is not None
            node.graph.insert_before(node, scaled)
            new = ir.node("Mul", inputs=[scaled.outputs[0], node.inputs[1]], metadata_props={"done": "1"})
            editor.substitute(node, new)


@dataclasses.dataclass(frozen=True)
class Fault:
    """What a pass does wrong.

    Attributes:
        pass_: The pass.
        kind: How it breaks its contract; see `optimizer.pass_check.Breach`.
        node: The name of the value at which it first shows, `""` where it is not about one.
        most_nodes: The smallest model that shows it has at most so many.
        final_sees_it: Whether comparing only the last result with the first one shows it.
    """

    pass_: Pass
    kind: str
    node: str
    most_nodes: int
    final_sees_it: bool


FAULTS = (
    Fault(DropBias(), "values", "n", 2, True),
    Fault(SwapOperands(), "values", "s", 1, True),
    Fault(IgnoreMask(), "values", "a", 1, True),
    Fault(FreezeBatch(), "invalid", "k", 1, False),
    Fault(ClaimNothing(), "modified", "r", 1, False),
    Fault(ClaimMuch(), "modified", "", 1, False),
    Fault(UndoFusion(), "census", "", 1, False),
    Fault(LoseEpsilon(), "values", "n", 1, True),
    Fault(WrongAxis(), "values", "u", 2, True),
    Fault(ChangeInterface(), "interface", "", 1, False),
    Fault(Fail(), "failed", "l", 1, False),
    Fault(NameAtRandom(), "order", "", 1, False),
)
