"""Chains between two roundings of one tensor of bytes, as tables of 256 bytes.

Where a quantizer has rounded every step of an activation that is written out (a hard swish as Add, HardSigmoid and Mul,
each between a DequantizeLinear and a QuantizeLinear), everything between the first bytes and the last is a function of
one byte:

    QuantizeLinear(f(DequantizeLinear(x)))  =  table[x]

with f element-wise operations and further roundings, whose other operands are single constants. ONNX Runtime computes
the table, node by node, when the model is compiled: it is exact whatever f is. It takes two look-ups in 128 bytes in
registers where the processor has them (`looks_up`); elsewhere the chain is computed, since a load for each byte takes
as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir
from tvm import te, tirx

from backends.relax.attributes import get_int
from backends.relax.emitter import Emitter
from backends.relax.forms import is_known
from backends.relax.layout import laid
from backends.relax.quantized import BYTES, OFFSET, only_dequantized, remember_unsigned, signed, unsigned
from backends.relax.scalars import cast
from backends.relax.values import Result
from optimizer.ort_session import OrtSession

__all__ = ["LooksUp", "byte_function"]

_FEWEST = 5
"""Nodes of a chain that a table is made for: with fewer, it is a few operations itself."""

_ELEMENTWISE = frozenset(
    (
        *(
            "Abs",
            "Add",
            "Clip",
            "Div",
            "Elu",
            "Erf",
            "Exp",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "LeakyRelu",
        ),
        *("Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub"),
        *("Swish", "Tanh"),
    )
)


@runtime_checkable
class LooksUp(Protocol):
    """A target's schedules that know of tables."""

    def looks_up(self) -> bool:
        """Whether a byte of a table of 256 is found in a few operations on registers."""
        ...

    def looked_up(self, code: tirx.Expr, table: bytes) -> tirx.Expr:
        """The byte of a table at an int32 code, as int32."""
        ...


class _Chain:
    """The nodes in front of a QuantizeLinear, as far back as they depend on one tensor of bytes alone."""

    def __init__(self, ctx: Emitter) -> None:
        self.ctx = ctx
        self.nodes: dict[ir.Node, None] = {}
        self.constants: dict[ir.Value, np.ndarray] = {}

    def source(self, value: ir.Value | None) -> ir.Value | None:
        """The tensor of bytes that a float depends on; `None` if on none, or on more than one, or on anything else."""
        node = None if value is None else value.producer()
        if value is None or node is None or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
            return None
        if node.op_type == "DequantizeLinear":
            return self._bytes(node)
        if node.op_type not in _ELEMENTWISE:
            return None
        found: ir.Value | None = None
        for operand in node.inputs:
            if operand is None or self._is_number(operand):
                continue
            own = self.source(operand)
            if own is None or (found is not None and own is not found):
                return None
            found = own
        self.nodes[node] = None
        return found

    def _bytes(self, node: ir.Node) -> ir.Value | None:
        x = node.inputs[0]
        if x is None or x.dtype not in BYTES or not self.has_numbers(node):
            return None
        before = x.producer()
        if before is not None and before.op_type == "QuantizeLinear" and self.has_numbers(before):
            known = dict(self.nodes)
            deeper = self.source(before.inputs[0])
            if deeper is not None:
                self.nodes |= {before: None, node: None}
                return deeper
            self.nodes = known  # without what one of its operands came from
        if not is_known(self.ctx, x) or self.ctx.is_weight(x):
            return None
        self.nodes[node] = None
        return x

    def has_numbers(self, node: ir.Node) -> bool:
        """Whether the scale and zero point are one number each."""
        return not get_int(node, "block_size", 0) and all(x is None or self._is_number(x) for x in node.inputs[1:])

    def _is_number(self, value: ir.Value) -> bool:
        """Whether a value is one constant, be it a rounded one."""
        node = value.producer()
        if node is not None and node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
            if not self._is_number(node.inputs[0]) or not self.has_numbers(node):
                return False
            self.nodes[node] = None
            return True
        array = self.ctx.constant(value) if is_known(self.ctx, value) else None
        if array is None or array.size != 1:
            return False
        self.constants[value] = array.reshape(())
        return True

    def table(self, source: ir.Value, last: ir.Node) -> np.ndarray:
        """What `last` gives for each byte, in the order of the bytes, smallest first."""
        dtype = source.dtype or ir.DataType.UINT8
        numbers = np.arange(256) - (OFFSET if dtype == ir.DataType.INT8 else 0)
        return _run([*self.nodes, last], source, self.constants, numbers.astype(dtype.numpy()))


def _run(
    nodes: list[ir.Node], source: ir.Value, constants: Mapping[ir.Value, np.ndarray], numbers: np.ndarray
) -> np.ndarray:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.from_numpy(numbers.dtype)), shape=ir.Shape(numbers.shape))
    values: dict[ir.Value, ir.Value] = {source: x}
    for place, (old, array) in enumerate(constants.items()):
        name = f"c{place}"
        kind = old.dtype or ir.DataType.from_numpy(array.dtype)
        number = ir.tensor(array, kind, name)
        values[old] = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(()), const_value=number)
    copies = []
    for place, node in enumerate(nodes):
        inputs = [None if value is None else values[value] for value in node.inputs]
        copy = ir.Node("", node.op_type, inputs, node.attributes.values(), num_outputs=1)
        copy.outputs[0].name = f"v{place}"
        values[node.outputs[0]] = copy.outputs[0]
        copies.append(copy)
    last = copies[-1].outputs[0]
    last.type, last.shape = ir.TensorType(nodes[-1].outputs[0].dtype or ir.DataType.UINT8), ir.Shape(numbers.shape)
    around = nodes[-1].graph
    assert around is not None, "the node is in a graph"
    used = [values[value] for value in constants]
    graph = ir.Graph(
        [x], [last], nodes=copies, initializers=used, opset_imports={"": around.opset_imports[""]}, name="table"
    )
    (result,) = OrtSession.from_model(ir.Model(graph, ir_version=10), optimize=False).run([numbers])
    return np.asarray(result)


def byte_function(ctx: Emitter, node: ir.Node) -> Result | None:
    """A QuantizeLinear as a table of what it reads; `None` where that is no function of one tensor of bytes.

    Args:
        ctx: the emitter.
        node: a QuantizeLinear.
    """
    tiles, y = ctx.tiles, node.outputs[0]
    if not isinstance(tiles, LooksUp) or not tiles.looks_up() or y.dtype not in BYTES:
        return None
    if y.dtype == ir.DataType.INT8 and not only_dequantized(y):
        return None
    chain = _Chain(ctx)
    if not chain.has_numbers(node):
        return None
    source = chain.source(node.inputs[0])
    if source is None or len(chain.nodes) + 1 < _FEWEST:
        return None
    table = chain.table(source, node)
    if y.dtype == ir.DataType.INT8:
        table = (table.astype(np.int32) + OFFSET).astype(np.uint8)
    operand = laid(ctx, unsigned(ctx, source))
    look_up, codes = tiles.looked_up, table.tobytes()

    def build(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *i: cast(look_up(cast(x(*i), "int32"), codes), "uint8"), name="table")

    result = operand.result(ctx.te(build, operand.expr, primfunc_name_hint="table"))
    return signed(ctx, remember_unsigned(ctx, y, result)) if y.dtype == ir.DataType.INT8 else result
