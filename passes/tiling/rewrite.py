"""The steps of a plan as nodes of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.provenance import inherit
from optimizer.ir.query import array
from passes.tiling.cut import WHOLE, Array, Window
from passes.tiling.facts import Facts
from passes.tiling.search import Plan, steps_of_choice
from passes.tiling.steps import Key, Operand, Step

__all__ = ["apply"]


def apply(editor: Editor, facts: Facts, plan: Plan) -> None:
    """Let the graph of `facts` follow a plan."""
    writer = _Writer(editor, facts)
    cut = [choice for choice in plan.choices if choice.way is not None]
    # All steps first: they are about the values as they are before anything is replaced.
    steps = [steps_of_choice(facts, plan.lifetimes, choice) for choice in cut]
    for choice, found in zip(cut, steps, strict=True):
        units = facts.units[choice.start : choice.stop]
        writer.write(units[-1].nodes[-1], found, plan.lifetimes.targets(choice.start, choice.stop))
    for unit in reversed(facts.units):
        for node in reversed(unit.nodes):
            if node.graph is not None:
                editor.remove_if_unused(node)


@dataclass
class _Writer:
    editor: Editor
    facts: Facts
    values: dict[Key, ir.Value] = field(default_factory=dict)
    constants: dict[object, ir.Value] = field(default_factory=dict)

    def write(self, before: ir.Node, steps: Sequence[Step], targets: Sequence[ir.Value]) -> None:
        """Put the steps behind a node, and let them give the targets."""
        scope = Scope(self.facts.model.graph, self.facts.opset)
        anchor = before
        for step in steps:
            node = self._node(scope, before, step)
            scope.graph.insert_after(anchor, node)
            anchor = node
            self.values[step.gives] = node.outputs[0]
        for target in targets:
            result = self.values[Key(target)]
            producer = target.producer()
            self.editor.replace(target, result)
            if producer is not None and not target.name:
                target.name = self.editor.fresh_name("dropped")

    def _node(self, scope: Scope, before: ir.Node, step: Step) -> ir.Node:
        inputs = [self._value(scope, before, operand) for operand in step.operands]
        attributes = {name: a for name, a in step.like.attributes.items() if name not in step.attributes}
        attributes |= {name: a for name, a in step.attributes.items() if a is not None}
        name = self.editor.fresh_name(f"{step.like.name or step.like.op_type}_piece")
        node = ir.Node("", step.op_type, inputs, list(attributes.values()), name=name, version=step.like.version)
        value, key = node.outputs[0], step.gives
        shape = self.facts.shape(key.value) or ()
        value.name = self.editor.fresh_name(f"{key.value.name}_piece")
        dtype = self.facts.sizes.dtype(key.value)
        value.type = None if dtype is None else ir.TensorType(dtype)
        value.shape = ir.Shape(key.window.shape(shape))
        inherit(node, [step.like])
        return node

    def _value(self, scope: Scope, before: ir.Node, operand: Operand) -> ir.Value | None:
        if operand is None or isinstance(operand, Key):
            return None if operand is None else self.values.get(operand, operand.value)
        if isinstance(operand, np.ndarray):
            known = (operand.dtype.str, operand.shape, operand.tobytes())
            return self._constant(scope, before, known, "piece", operand)
        value, window = operand
        if window == WHOLE:
            return value
        content = array(value)
        assert content is not None, "it is a weight"
        if window.size == content.shape[window.axis]:
            return value
        return self._constant(scope, before, (value, window), value.name, _window(content, window))

    def _constant(self, scope: Scope, before: ir.Node, known: object, name: str | None, content: Array) -> ir.Value:
        if known not in self.constants:
            self.constants[known] = self.editor.constant(scope, before, name, content)
        return self.constants[known]


def _window(content: Array, window: Window) -> Array:
    index = [slice(None)] * content.ndim
    index[window.axis] = slice(window.start, window.stop)
    return np.ascontiguousarray(content[tuple(index)])
