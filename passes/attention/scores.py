"""The match: from a Softmax up to the product of queries and keys, and down to the product with the values.

    scores = Q @ K^T, then in any order: scaled, bent by a tanh, biased, chosen by a condition, cast to a wider type
    Softmax(scores) @ V, the probabilities cast back, or their NaN replaced by 0

What the scores went through is gathered as one scale, one soft cap, and a list of masks in the order in which they
are applied, the last one first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from optimizer.ir.edit import Editor
from optimizer.ir.query import FLOATS, input_at, int_attribute, is_op
from passes.attention.build import NotFused
from passes.attention.uniform import scalar, uniform

__all__ = ["Bias", "Choice", "Match", "match", "softmax_above"]

_DEPTH = 16
"""How many nodes there may be between the two products on either side of the Softmax."""
_MASKING = -1e4
"""A score that is replaced by this or less has no weight beside one that is not."""


@dataclass(frozen=True)
class Bias:
    """`value * factor` is added to the scores."""

    value: ir.Value
    factor: float


@dataclass(frozen=True)
class Choice:
    """Where `condition` is not `seen`, `fill` takes the place of the score."""

    condition: ir.Value
    seen: bool
    fill: float


@dataclass
class Match:
    """An attention, as it is written.

    Attributes:
        softmax: The Softmax.
        query: `[..., S, D]`.
        key: `[..., D, T]`, transposed.
        value: `[..., T, E]`.
        last: The node that gives the result.
        nodes: All nodes that the attention takes the place of.
        scale: Factor of the products.
        softcap: Where they are bent to; 0 for nowhere.
        masks: The last one first.
        keeps_nan: False where the NaN of a row that sees nothing become 0.
        softmax_dtype: The type that the Softmax computes in, if it is another one than that of the products.
        weights: The probabilities that the values are multiplied by, `[..., S, T]`, where they are used besides.
    """

    softmax: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    last: ir.Node
    nodes: list[ir.Node]
    scale: float = 1.0
    softcap: float = 0.0
    masks: list[Bias | Choice] = field(default_factory=list)
    keeps_nan: bool = True
    softmax_dtype: ir.DataType | None = None
    weights: ir.Value | None = None


def softmax_above(last: ir.Node) -> ir.Node | None:
    """The Softmax whose probabilities a matrix product is given, perhaps after a cast or a guard against NaN."""
    value = input_at(last, 0) if is_op(last, "MatMul") else None
    for _ in range(3):
        node = None if value is None else value.producer()
        if node is None or is_op(node, "Softmax"):
            return node
        if not is_op(node, "Cast", "Where"):
            return None
        value = node.inputs[2 if node.op_type == "Where" else 0]
    return None


def match(editor: Editor, softmax: ir.Node, last: ir.Node) -> Match | None:
    """The attention around a Softmax.

    Args:
        editor: Knows the shapes.
        softmax: Gives the probabilities.
        last: The matrix product that uses them.

    Returns:
        `None` when the scores are no matrix product.

    Raises:
        NotFused: It does, but cannot become an `Attention`.
    """
    scores = input_at(softmax, 0)
    if scores is None or not _leads_to_product(scores, set()):
        return None
    _check_axis(editor, softmax)
    walk = _Scores(editor, softmax)
    product = walk.up(scores)
    down, keeps_nan, narrowed = _probabilities(softmax, last)
    query, key, value = product.inputs[0], product.inputs[1], last.inputs[1]
    if query is None or key is None or value is None:
        raise NotFused(f"an input of {product.name or product.op_type!r} is left out")
    found = Match(softmax, query, key, value, last, [*walk.nodes, softmax, *down, last])
    found.scale, found.softcap, found.masks, found.keeps_nan = walk.scale(), walk.softcap, walk.masks, keeps_nan
    found.softmax_dtype = _softmax_dtype(walk.widened, narrowed)
    weights = last.inputs[0]
    if weights is not None and (weights.is_graph_output() or len(weights.uses()) > 1):
        found.weights = weights
    return found


def _leads_to_product(value: ir.Value, seen: set[ir.Value]) -> bool:
    """Whether a matrix product is at the end of what can be done to scores."""
    if value in seen or len(seen) > _DEPTH:
        return False
    seen.add(value)
    node = value.producer()
    if node is None:
        return False
    if is_op(node, "MatMul"):
        return True
    return any(_leads_to_product(given, seen) for given in _operands(node))


def _operands(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs of a node that may be scores."""
    if is_op(node, "Add", "Sub", "Mul", "Div", "Tanh", "Cast", "Where", "Clip", "Reshape", "Max", "Min"):
        for given in node.inputs[: 1 if node.op_type in ("Cast", "Clip", "Reshape", "Tanh") else None]:
            if given is not None and given.producer() is not None:
                yield given


def _check_axis(editor: Editor, softmax: ir.Node) -> None:
    dims = editor.shapes.dims(softmax.inputs[0])
    axis = int_attribute(softmax, "axis", -1)
    if axis != -1 and (dims is None or axis != len(dims) - 1):
        raise NotFused(f"the softmax is along axis {axis}, not along the keys, which are the last axis")


# --- Above the Softmax ---


class _Scores:
    """What the scores went through, from the Softmax up to the product."""

    def __init__(self, editor: Editor, softmax: ir.Node) -> None:
        self.editor = editor
        self.nodes: list[ir.Node] = []
        self.masks: list[Bias | Choice] = []
        self.softcap = 0.0
        self.widened: tuple[ir.DataType, ir.DataType] | None = None
        self._user = softmax
        self._factor = 1.0

    def up(self, value: ir.Value) -> ir.Node:
        """Follow the scores up to the product that they come from."""
        while True:
            node = value.producer()
            assert node is not None, "a product has been found above"
            if value.is_graph_output() or {use.node for use in value.uses()} != {self._user}:
                raise NotFused(f"the scores {value.name!r} are used elsewhere too")
            self.nodes.append(node)
            self._user = node
            if is_op(node, "MatMul"):
                return node
            value = self._through(node)

    def scale(self) -> float:
        """The factor of the products themselves."""
        scale = self._factor * (self.softcap or 1.0)
        if not (scale > 0 and math.isfinite(scale)):
            raise NotFused(f"the scores are scaled by {scale:g}, which is not a positive number")
        return scale

    def _through(self, node: ir.Node) -> ir.Value:
        """Take note of one node; the scores that it was given."""
        match node.op_type:
            case "Mul" | "Div":
                return self._scaled(node)
            case "Add" | "Sub":
                return self._biased(node)
            case "Where":
                return self._chosen(node)
            case "Tanh":
                return self._bent(node)
            case "Cast":
                return self._cast(node)
            case _:
                raise NotFused(f"a {node.op_type} stands between the product and the softmax")

    def _scaled(self, node: ir.Node) -> ir.Value:
        for index in (0, 1) if node.op_type == "Mul" else (1,):
            number, scores = scalar(node.inputs[index]), node.inputs[1 - index]
            if number and scores is not None:
                self._factor *= number if node.op_type == "Mul" else 1 / number
                return scores
        raise NotFused(f"the scores {node.outputs[0].name!r} are scaled by something that is not one constant number")

    def _biased(self, node: ir.Node) -> ir.Value:
        self._before_cap(node)
        index = next((i for i in (0, 1) if _is_scores(node.inputs[i])), 0)
        scores, bias = node.inputs[index], node.inputs[1 - index]
        assert scores is not None and bias is not None, "Add and Sub have two inputs"
        sign = 1.0
        if node.op_type == "Sub":
            if index == 1:
                raise NotFused(f"the scores {scores.name!r} are subtracted")
            sign = -1.0
        self.masks.append(Bias(bias, self._factor * sign))
        return scores

    def _chosen(self, node: ir.Node) -> ir.Value:
        self._before_cap(node)
        condition = node.inputs[0]
        for index in (1, 2):
            fill, scores = uniform(node.inputs[3 - index]), node.inputs[index]
            if fill is None or scores is None or condition is None or not _is_scores(scores):
                continue
            fill *= self._factor
            if not fill <= _MASKING:
                raise NotFused(f"the scores not chosen by {condition.name!r} become {fill:g}, which does not mask them")
            self.masks.append(Choice(condition, index == 1, fill))
            return scores
        raise NotFused(f"the Where that gives {node.outputs[0].name!r} does not choose between scores and one number")

    def _bent(self, node: ir.Node) -> ir.Value:
        self._before_cap(node)
        if self._factor <= 0:
            raise NotFused(f"the scores are bent by a tanh that is scaled by {self._factor:g}")
        self.softcap, self._factor = self._factor, 1.0
        scores = node.inputs[0]
        assert scores is not None, "Tanh has an input"
        return scores

    def _cast(self, node: ir.Node) -> ir.Value:
        scores = node.inputs[0]
        assert scores is not None, "Cast has an input"
        before, after = self.editor.shapes.dtype(scores), ir.DataType(int_attribute(node, "to", 0))
        if before not in FLOATS or after not in FLOATS or self.widened is not None:
            raise NotFused(f"the scores {scores.name!r} are cast to {after.name.lower()}")
        self.widened = (before, after)
        return scores

    def _before_cap(self, node: ir.Node) -> None:
        if self.softcap:
            raise NotFused(f"a {node.op_type} changes the scores before they are bent by a tanh")


def _is_scores(value: ir.Value | None) -> bool:
    return value is not None and _leads_to_product(value, set())


# --- Below it ---


def _probabilities(softmax: ir.Node, last: ir.Node) -> tuple[list[ir.Node], bool, ir.DataType | None]:
    """The nodes between the Softmax and the second product, whether NaN stay, and the type they are cast to.

    What the product is given may be used elsewhere too: an `Attention` has it as an output. What comes before may not.
    """
    nodes: list[ir.Node] = []
    value, keeps_nan, narrowed = softmax.outputs[0], True, None
    while value is not last.inputs[0]:
        users = list(dict.fromkeys(use.node for use in value.uses()))
        if value.is_graph_output():
            raise NotFused(
                f"the probabilities {value.name!r} are an output of the graph, and cast or chosen from after it"
            )
        if len(users) == 1 and is_op(users[0], "Cast"):
            narrowed = ir.DataType(int_attribute(users[0], "to", 0))
            nodes.append(users[0])
        elif (guard := _guard(value, users)) is not None:
            nodes += guard
            keeps_nan = False
        else:
            raise NotFused(f"the probabilities {value.name!r} are used elsewhere too, and cast or chosen from after it")
        value = nodes[-1].outputs[0]
    if last.inputs[1] is value:
        raise NotFused(f"the probabilities {value.name!r} are multiplied by themselves")
    return nodes, keeps_nan, narrowed


def _guard(value: ir.Value, users: list[ir.Node]) -> list[ir.Node] | None:
    """`Where(IsNaN(p), 0, p)`."""
    tests = [user for user in users if is_op(user, "IsNaN")]
    choices = [user for user in users if is_op(user, "Where")]
    if len(tests) != 1 or len(choices) != 1 or len(users) != 2:
        return None
    (test,), (choice,) = tests, choices
    condition = test.outputs[0]
    if choice.inputs[0] is not condition or choice.inputs[2] is not value or uniform(choice.inputs[1]) != 0.0:
        return None
    alone = len(condition.uses()) == 1 and not condition.is_graph_output()
    return [test, choice] if alone else None


def _softmax_dtype(widened: tuple[ir.DataType, ir.DataType] | None, narrowed: ir.DataType | None) -> ir.DataType | None:
    if widened is None and narrowed is None:
        return None
    if widened is None or narrowed != widened[0]:
        raise NotFused("the softmax computes in one type, and the probabilities are cast to another one")
    return widened[1]
