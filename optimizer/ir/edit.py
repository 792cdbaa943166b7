"""Changes to a graph that keep it legal: replace a value, add a constant, take nodes out, find a free name.

`Editor` does them and knows whether anything was changed. `rewrite_nodes` takes one over every node of a model,
`rewrite_graphs` over every graph.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.ir.analysis import analyse, changed
from optimizer.ir.near_miss import NearMiss, RewriteResult
from optimizer.ir.provenance import inherit, label, origins
from optimizer.ir.query import has_users
from optimizer.ir.shapes import Shapes
from optimizer.ir.walk import all_graphs, all_nodes, has_subgraphs, nested_graphs, subgraphs

__all__ = ["Content", "Editor", "Scope", "rewrite_graphs", "rewrite_nodes"]

_WEIGHT_BYTES = 4096
Content = npt.NDArray[np.generic] | ir.TensorProtocol


@dataclass(frozen=True)
class Scope:
    """One graph of the model, and what a pass must know about where it stands.

    Attributes:
        graph: The graph.
        opset: The version of the standard ONNX operators in it; 0 when it imports none.
        in_function: Whether it is the body of a function itself, which can have no initializers.
        parent: The scope around it.
    """

    graph: ir.Graph
    opset: int
    in_function: bool = False
    parent: Scope | None = None


class Editor:
    """Changes one model, and keeps in `modified` whether it did.

    Args:
        model: The model, with its nodes in topological order.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._modified = False
        self.near_misses: dict[NearMiss, None] = {}
        self._numbers: dict[str, int] = {}
        self._released: dict[ir.Value, None] = {}

    @functools.cached_property
    def shapes(self) -> Shapes:
        """What is known of the values; inferred when first asked for, and not told of values made after that."""
        return analyse(Shapes, self.model)

    @property
    def modified(self) -> bool:
        """Whether anything was changed. Whoever changes something by hand sets it."""
        return self._modified

    @modified.setter
    def modified(self, value: bool) -> None:
        self._modified = value
        changed(self.model)

    @functools.cached_property
    def _names(self) -> Counter[str]:
        return Counter(_value_names(self.model))

    def fresh_name(self, base: str | None) -> str:
        """`base`, or `base` with a number, whichever is free in the whole model.

        A name inside a subgraph may not hide one of the graph around it, so uniqueness in one graph is not enough.
        """
        base = base or "value"
        name = base
        while name in self._names:
            self._numbers[base] = number = self._numbers.get(base, 0) + 1
            name = f"{base}_{number}"
        self._names[name] += 1
        return name

    def make_unique(self, value: ir.Value) -> None:
        """Rename a value whose name another one has too; it is about to move into a graph around its own."""
        if value.name and self._names[value.name] > 1:
            self._names[value.name] -= 1
            value.name = self.fresh_name(value.name)

    @staticmethod
    def can_replace(old: ir.Value, new: ir.Value) -> bool:
        """Whether `replace` would succeed."""
        if not old.is_graph_output():
            return True
        producer = new.producer()
        return producer is not None and producer.graph is old.graph and not new.is_graph_output()

    def replace(self, old: ir.Value, new: ir.Value) -> bool:
        """Let every user of `old` use `new` instead.

        When `old` is an output of its graph, `new` takes its place, name and declared type there. That is not
        possible when `new` is an input, an initializer, another output, or belongs to another graph: then nothing
        changes.

        Args:
            old: Its node is to be removed by the caller.
            new: Stands before every user of `old`.

        Returns:
            Whether it was possible.
        """
        if not self.can_replace(old, new):
            return False
        if "shapes" in self.__dict__:
            self.shapes.learn(new, old)
        if old.is_graph_output():
            new.name = old.name
            new.type = old.type or new.type
            new.shape = old.shape if old.shape is not None else new.shape
        else:
            new.type = new.type or old.type
            if new.shape is None and old.shape is not None:
                new.shape = old.shape.copy()
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.modified = True
        return True

    def replace_or_copy(self, node: ir.Node, old: ir.Value, new: ir.Value) -> None:
        """Like `replace`; where that is not possible, an `Identity` of `new` before `node` takes the place of `old`."""
        if self.replace(old, new):
            return
        copy = ir.node("Identity", inputs=[new], name=self.fresh_name(old.name))
        copy.outputs[0].name = old.name
        inherit(copy, [node])
        assert node.graph is not None, "the node is in a graph"
        node.graph.insert_before(node, copy)
        self.replace(old, copy.outputs[0])

    def bypass(self, node: ir.Node, value: ir.Value) -> bool:
        """Let the users of the first output of `node` use `value` instead, and remove the node.

        Returns:
            Whether it was possible; see `replace`. The node's other outputs must be unused.
        """
        if has_users(node.outputs[1:]):
            return False
        if not self.replace(node.outputs[0], value):
            return False
        self.remove(node)
        return True

    def substitute(self, node: ir.Node, new: ir.Node, also: Iterable[ir.Node] = ()) -> None:
        """Put `new` in the place of `node`: its outputs take the names and users of the outputs of `node`.

        Args:
            node: Is removed.
            new: Has as many outputs and is in no graph yet. Its origins become those of `node` and of `also`.
            also: Further nodes whose work `new` does.
        """
        assert node.graph is not None, "the node is in a graph"
        inherit(new, [node, *also])
        new.name = new.name or node.name
        for old, value in zip(node.outputs, new.outputs, strict=True):
            value.name = old.name
        node.graph.insert_before(node, new)
        for old, value in zip(node.outputs, new.outputs, strict=True):
            self.replace(old, value)
        self.remove(node)

    def remove(self, node: ir.Node) -> None:
        """Take out a node that nothing uses any more, together with what its subgraphs use."""
        for graph in subgraphs(node):
            for inner in nested_graphs(graph):
                for user in inner:
                    _detach(user)
        given = [value for value in node.inputs if value is not None]
        _detach(node)
        assert node.graph is not None, "a node is removed once"
        node.graph.remove(node)
        self.modified = True
        self._released.update(dict.fromkeys(given))

    def drop_weights(self) -> None:
        """Free the weights that lost a user and have none left; only when what takes their place has been made."""
        for value in self._released:
            _drop_weight(value)
        self._released.clear()

    def miss(self, node: ir.Node, reason: str) -> None:
        """Note that a fusion did not fire at `node`, though it looks like what the fusion is for, and why."""
        self.near_misses[NearMiss(label(node), reason, origins(node))] = None

    def remove_if_unused(self, node: ir.Node) -> None:
        """Take out a node if nothing uses it any more."""
        if not has_users(node.outputs):
            self.remove(node)

    def constant(self, scope: Scope, before: ir.Node, name: str | None, content: Content) -> ir.Value:
        """Give `scope` a constant: an initializer, or in a function, which can have none, a `Constant` node.

        Args:
            scope: Where it is to be.
            before: A node of that graph that the constant must precede.
            name: A name for it, made unique.
            content: The elements.
        """
        return self._constant(scope, before, self.fresh_name(name), content, as_node=scope.in_function)

    def fold(self, scope: Scope, node: ir.Node, contents: Sequence[Content]) -> list[ir.Value]:
        """Replace a node by constants.

        Where an output is one of the graph's, a `Constant` node gives it: not every graph may give an initializer.

        Args:
            scope: Where the node stands.
            node: Is removed.
            contents: One for each output that has a name.

        Returns:
            The constants.
        """
        named = [output for output in node.outputs if output.name]
        constants = []
        for output, content in zip(named, contents, strict=True):
            assert output.name is not None
            as_node = scope.in_function or output.is_graph_output()
            constants.append(self._constant(scope, node, output.name, content, as_node=as_node))
            self.replace(output, constants[-1])
        self.remove(node)
        return constants

    def _constant(self, scope: Scope, before: ir.Node, name: str, content: Content, *, as_node: bool) -> ir.Value:
        # What `ir.tensor` would give, which looks for every other kind of tensor first.
        tensor = ir.Tensor(content, name=name) if isinstance(content, np.ndarray) else content
        self.modified = True
        if as_node:
            node = ir.node("Constant", inputs=[], attributes={"value": tensor}, name=name)
            inherit(node, [before])
            value = node.outputs[0]
            value.name = name
            scope.graph.insert_before(before, node)
        else:
            value = ir.Value(name=name, const_value=tensor)
            scope.graph.register_initializer(value)
        value.type = ir.TensorType(tensor.dtype)
        value.shape = ir.Shape(tensor.shape.numpy())
        return value


def rewrite_nodes(
    model: ir.Model, visit: Callable[[Editor, Scope, ir.Node], None], op_types: Collection[str] | None = None
) -> ir.passes.PassResult:
    """Call `visit` with every node of the model, in topological order; those of a subgraph come before its node.

    Args:
        model: Changed in place.
        visit: May change or remove the node, and any node before it.
        op_types: The operators of which it is called with the nodes; `None` for all. Without any of them in the model
            it is not walked through at all.
    """
    editor = Editor(model)
    if op_types is None or not analyse(_op_types, model).isdisjoint(op_types):
        for scope in _top_scopes(model):
            _visit(editor, scope, visit, op_types)
    return RewriteResult(model, editor.modified, tuple(editor.near_misses))


def rewrite_graphs(model: ir.Model, visit: Callable[[Editor, Scope], None]) -> ir.passes.PassResult:
    """Call `visit` with every graph of the model; a subgraph comes before the graph around it."""
    editor = Editor(model)
    for scope in _top_scopes(model):
        _visit_graph(editor, scope, visit)
    return RewriteResult(model, editor.modified, tuple(editor.near_misses))


def _visit_graph(editor: Editor, scope: Scope, visit: Callable[[Editor, Scope], None]) -> None:
    for node in scope.graph:
        for graph in subgraphs(node):
            _visit_graph(editor, Scope(graph, scope.opset, parent=scope), visit)
    visit(editor, scope)
    editor.drop_weights()


def _op_types(model: ir.Model, outdated: frozenset[str] | None) -> frozenset[str]:
    del outdated
    return frozenset(node.op_type for node in all_nodes(model))


def _visit(
    editor: Editor,
    scope: Scope,
    visit: Callable[[Editor, Scope, ir.Node], None],
    op_types: Collection[str] | None,
) -> None:
    for node in scope.graph:
        if node.attributes.data and has_subgraphs(node):
            for graph in subgraphs(node):
                _visit(editor, Scope(graph, scope.opset, parent=scope), visit, op_types)
        if op_types is None or node.op_type in op_types:
            visit(editor, scope, node)
            editor.drop_weights()


def _top_scopes(model: ir.Model) -> Iterator[Scope]:
    yield Scope(model.graph, model.opset_imports.get("", 0))
    for function in list(model.functions.values()):
        opset = function.opset_imports.get("", model.opset_imports.get("", 0))
        yield Scope(function.graph, opset, in_function=True)


def _detach(node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None:
            node.replace_input_with(index, None)


def _drop_weight(value: ir.Value) -> None:
    """Free a weight that nothing uses any more. Small ones are left: a scalar may have very many users to look at."""
    tensor = value.const_value
    if tensor is None or not value.is_initializer() or tensor.nbytes < _WEIGHT_BYTES:
        return
    if value.uses() or value.is_graph_input() or value.is_graph_output():
        return
    assert value.graph is not None and value.name is not None, "an initializer has both"
    del value.graph.initializers[value.name]


def _value_names(model: ir.Model) -> Iterator[str]:
    for graph in all_graphs(model):
        for value in graph.inputs:
            yield value.name or ""
        yield from graph.initializers
        for node in graph:
            for output in node.outputs:
                yield output.name or ""
