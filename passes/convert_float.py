"""Compute in bfloat16 or float16 what is float32, between the inputs and outputs of the model, whose types stay.

1. Products and convolutions, and what lies between them, read and give the narrow type, where ONNX allows it for the
   operator; which nodes those are is decided by `optimizer.ir.float_types`: with the fewest conversions.
2. Operators that lose more than a rounding error stay float32 (`optimizer.ir.float_sensitive`), and so do those that
   `keep` names, and whatever is inside functions, or of another domain.
3. A `Cast` stands where a value is made in one type and read in the other: one for all readers, right behind the
   value. A `Cast` or `ConstantOfShape` of the model gives the type that is wanted itself.
4. A constant is converted once (to the nearest, ties to even), when it is read; if it is needed in both types it is
   kept in both. A large number that the type has not, such as the -3.4e38 of a mask, becomes a smaller one, not
   infinity: a row of a softmax that is masked throughout would be NaN. The same is done to an input that is added in
   front of a `Softmax`.
5. In float16, operators whose numbers may not fit its range stay float32 (`optimizer.ir.float_range`).
6. A float32 mask (the `attn_mask` of `Attention`) and the exponent of a power stay what they are: ONNX lets them.

Values of other types stay as they are. A model without products or convolutions stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

from optimizer.errors import PipelineError
from optimizer.ir.edit import Editor, Scope
from optimizer.ir.float_range import masks_scores
from optimizer.ir.float_sensitive import TRANSPARENT
from optimizer.ir.float_slots import Slot, input_slots, output_slots
from optimizer.ir.float_types import Division, divide, nested_scopes
from optimizer.ir.narrow_float import NARROW_FLOATS, NarrowFloat, clamped, rounded
from optimizer.ir.near_miss import RewriteResult
from optimizer.ir.provenance import inherit
from optimizer.ir.query import constant, int_attribute, is_op, tensor_of
from optimizer.pass_manager import Pass

__all__ = ["ConvertFloat"]

_WIDE = ir.DataType.FLOAT
_VIEWS = ("Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


@dataclasses.dataclass(frozen=True)
class ConvertFloat(Pass):
    """Makes float32 values bfloat16 or float16.

    Attributes:
        to: The type to compute in; `"bfloat16"` or `"float16"`.
        keep: Operators that are to stay float32 besides those that must, separated by `+`: `"Softmax+Gelu"`.
    """

    to: str = "bfloat16"
    keep: str = ""

    def __post_init__(self) -> None:
        if self.to not in NARROW_FLOATS:
            raise PipelineError(f"convert-float{{to}} must be {' or '.join(NARROW_FLOATS)}, not {self.to!r}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert the main graph, and the graphs inside it."""
        editor = Editor(model)
        scope = Scope(model.graph, model.opset_imports.get("", 0))
        narrow = NARROW_FLOATS[self.to]
        division = divide(scope, editor.shapes, narrow, [name for name in self.keep.split("+") if name])
        for node in division.fixed_heavy:
            editor.miss(node, f"{node.op_type} of opset {scope.opset} is not defined for {self.to}")
        if division.nodes:
            _Conversion(editor, scope, division, narrow).run()
        return RewriteResult(model, editor.modified, tuple(editor.near_misses))


@dataclasses.dataclass(frozen=True)
class _Use:
    """An input of a node, and whether it is to be of the narrow type."""

    node: ir.Node
    index: int
    narrow: bool


class _Conversion:
    """Carries a division out.

    Args:
        editor: Of the model.
        scope: The main graph.
        division: What is to be of the narrow type.
        narrow: That type.
    """

    def __init__(self, editor: Editor, scope: Scope, division: Division, narrow: NarrowFloat) -> None:
        self._editor = editor
        self._narrow = narrow
        self._nodes = division.nodes
        self._is_float = division.is_float
        self._scopes = {each.graph: each for each in nested_scopes(scope)}
        self._opset = scope.opset
        self._uses: dict[ir.Value, list[_Use]] = {}
        self._weights: dict[int, tuple[ir.TensorProtocol, ir.TensorProtocol]] = {}

    def run(self) -> None:
        """Rewrite the model."""
        nodes = [node for scope in self._scopes.values() for node in scope.graph]
        narrow = self._made_narrow()
        values = list(self._computed())
        self._find_uses(nodes)
        for node in nodes:
            if node in self._nodes and is_op(node, "Cast", "ConstantOfShape"):
                self._say_type(node)
        self._editor.modified = True
        for value in narrow:
            value.type = ir.TensorType(self._narrow.dtype)
        for value in values:
            self._convert(value, value in narrow)
        for value in self._uses:
            if constant(value) is not None:
                self._convert_constant(value)
        for node in nodes:
            self._remove_needless_cast(node)
        self._editor.drop_weights()

    def _made_narrow(self) -> dict[ir.Value, None]:
        made = (output_slots(node, self._opset, self._narrow.onnx) for node in self._nodes)
        outputs = (value for slots in made for value, slot in slots if slot is Slot.OWN)
        return dict.fromkeys(value for value in outputs if self._is_float(value))

    def _computed(self) -> Iterator[ir.Value]:
        """The float32 values that are no constants."""
        for graph in self._scopes:
            values = (*graph.inputs, *(value for node in graph for value in node.outputs if value.name))
            yield from (value for value in values if self._is_float(value) and constant(value) is None)

    def _find_uses(self, nodes: list[ir.Node]) -> None:
        for node in nodes:
            for index, (value, slot) in enumerate(input_slots(node, self._opset, self._narrow.onnx)):
                if value is not None and slot is not Slot.FREE and self._is_float(value):
                    use = _Use(node, index, slot is Slot.OWN and node in self._nodes)
                    self._uses.setdefault(value, []).append(use)

    # --- 1, 3. Values that are computed ---

    def _convert(self, value: ir.Value, narrow: bool) -> None:
        uses = [use for use in self._uses.get(value, ()) if use.narrow != narrow]
        outputs = narrow and value.is_graph_output()
        if not uses and not outputs:
            return
        if not narrow:
            self._clamp_arguments(value)
        other = self._in_other_type(value, uses, narrow)
        for use in uses:
            use.node.replace_input_with(use.index, other)
        if outputs:
            self._make_output(value, other)

    def _in_other_type(self, value: ir.Value, uses: list[_Use], narrow: bool) -> ir.Value:
        """The value in the type that it does not have itself."""
        maker = value.producer()
        source = maker.inputs[0] if maker is not None and is_op(maker, "Cast") else None
        if source is not None and source.dtype == self._narrow.dtype and not narrow:
            return source
        if source is None or self._editor.shapes.dtype(source) in (None, _WIDE):
            source = self._finite(value, uses) if value.is_graph_input() and _is_mask(value) else value
        cast = ir.node("Cast", [source], {"to": _WIDE if narrow else self._narrow.dtype})
        result = cast.outputs[0]
        result.name = self._editor.fresh_name(f"{value.name}_{'float32' if narrow else self._narrow.name}")
        result.type = ir.TensorType(_WIDE if narrow else self._narrow.dtype)
        result.shape = None if value.shape is None else value.shape.copy()
        if maker is not None and maker.graph is not None:
            inherit(cast, [maker])
            maker.graph.insert_after(maker, cast)
        else:
            assert value.graph is not None, "an input is one of a graph"
            inherit(cast, [uses[0].node])
            first = source.producer()
            if first is None:
                value.graph.insert_before(value.graph[0], cast)
            else:
                value.graph.insert_after(first, cast)
        return result

    def _make_output(self, value: ir.Value, cast: ir.Value) -> None:
        """Let the float32 form of a value be the output of the graph."""
        cast.name, value.name = value.name, self._editor.fresh_name(f"{value.name}_{self._narrow.name}")
        for graph in self._scopes:
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = cast

    def _say_type(self, node: ir.Node) -> None:
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", self._narrow.dtype)
            return
        filling = node.attributes.get("value")
        tensor = ir.tensor([0.0], _WIDE) if filling is None else tensor_of(filling)
        node.attributes["value"] = ir.AttrTensor("value", rounded(tensor, self._narrow))

    def _remove_needless_cast(self, node: ir.Node) -> None:
        if node.graph is None or not is_op(node, "Cast") or node.inputs[0] is None:
            return
        source = node.inputs[0]
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            self._editor.remove(node)
        elif source.dtype == self._narrow.dtype == int_attribute(node, "to", 0):
            self._editor.bypass(node, source)

    # --- 4. Constants, and masks that are inputs ---

    def _finite(self, mask: ir.Value, uses: list[_Use]) -> ir.Value:
        """A mask with its finite numbers in the range of the type, and its infinities as they are."""
        assert mask.graph is not None, "an input is one of a graph"
        first, scope = mask.graph[0], self._scopes[mask.graph]
        limits = [
            self._editor.constant(scope, first, f"{mask.name}_{name}", ir.tensor(limit, _WIDE))
            for name, limit in (("least", -self._narrow.mask), ("most", self._narrow.mask))
        ]
        infinite = ir.node("IsInf", [mask])
        clipped = ir.node("Clip", [mask, *limits])
        chosen = ir.node("Where", [infinite.outputs[0], mask, clipped.outputs[0]])
        for node, type_ in ((infinite, ir.DataType.BOOL), (clipped, _WIDE), (chosen, _WIDE)):
            node.outputs[0].name = self._editor.fresh_name(f"{mask.name}_{node.op_type.lower()}")
            node.outputs[0].type = ir.TensorType(type_)
            node.outputs[0].shape = None if mask.shape is None else mask.shape.copy()
            inherit(node, [uses[0].node])
            mask.graph.insert_before(first, node)
        return chosen.outputs[0]

    def _convert_constant(self, value: ir.Value) -> None:
        uses = [use for use in self._uses[value] if use.narrow]
        if not uses:
            return
        tensor = constant(value)
        assert tensor is not None, "it is a constant"
        if value.is_initializer() and len(uses) == len(value.uses()) and not value.is_graph_output():
            value.const_value = self._weight(tensor)
            value.type = ir.TensorType(self._narrow.dtype)
            return
        maker = value.producer()
        graph = value.graph if maker is None else maker.graph
        assert graph is not None, "a constant is in a graph"
        new = self._editor.constant(
            self._scopes[graph], graph[0], f"{value.name}_{self._narrow.name}", self._weight(tensor)
        )
        for use in uses:
            use.node.replace_input_with(use.index, new)
        if maker is not None:
            self._editor.remove_if_unused(maker)

    def _weight(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if id(tensor) not in self._weights:  # the tensor is kept, so that no other one gets its id
            self._weights[id(tensor)] = (tensor, rounded(tensor, self._narrow))
        return self._weights[id(tensor)][1]

    def _clamp_arguments(self, value: ir.Value) -> None:
        """Let no number that the type has not reach a value by sums, products and choices of constants.

        Of a type that ordinary numbers do not fit, only a mask's: what else is large there, something may divide by.
        """
        if self._narrow.is_short_of_range and not masks_scores(value):
            return
        waiting = [value.producer()]
        while waiting:
            node = waiting.pop()
            if node is None or node.op_type not in TRANSPARENT or node in self._nodes or node.domain:
                continue
            for index, given in enumerate(node.inputs):
                if given is None or not self._is_float(given):
                    continue
                tensor = constant(given)
                if tensor is None:
                    waiting.append(given.producer())
                elif (small := clamped(tensor, self._narrow)) is not None:
                    assert node.graph is not None, "it makes what is read"
                    new = self._editor.constant(self._scopes[node.graph], node, given.name, small)
                    node.replace_input_with(index, new)


def _is_mask(value: ir.Value) -> bool:
    """Whether a value, or a view of it, is added to what a softmax reads."""
    waiting = [value]
    while waiting:
        for user, _ in waiting.pop().uses():
            if is_op(user, "Add") and any(is_op(reader, "Softmax") for reader, _ in user.outputs[0].uses()):
                return True
            if is_op(user, *_VIEWS):
                waiting.append(user.outputs[0])
    return False
