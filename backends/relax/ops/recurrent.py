"""RNN, GRU, LSTM over a static, short sequence: one matrix product for all inputs, then the steps one after the other.

Shape letters: T steps, D directions, B batch, H hidden units, G gates. All directions advance together: step s is
position s for the forward direction and T - 1 - s for the reverse one, so that a state is [D, B, H] and one product
serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int, get_str
from backends.relax.cells import Cell, gru_reset, gru_step, lstm_step, rnn_step
from backends.relax.contraction import product, times
from backends.relax.emitter import Emitter
from backends.relax.registry import emits
from backends.relax.values import Refused, Result, prim, static_int

_MOST_STEPS = 256
"""A longer sequence would make more code than it is worth."""

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}

State = list[relax.Var]


@dataclass(frozen=True)
class _Layout:
    """Sizes of a recurrent node, and the order in which a direction sees the sequence."""

    steps: int
    directions: int
    batch: tirx.Expr
    hidden: int
    reverse: bool
    batch_first: bool

    @classmethod
    def of(cls, ctx: Emitter, node: ir.Node) -> _Layout:
        batch_first = get_int(node, "layout", 0) == 1
        length, batch = ctx.shape(node.inputs[0])[:2][:: -1 if batch_first else 1]
        steps = static_int(length)
        if steps is None or not 0 < steps <= _MOST_STEPS:
            raise Refused(f"a sequence of {length} steps (1 to {_MOST_STEPS} are unrolled)")
        directions, _, hidden = ctx.static_shape(node.inputs[2], "the recurrence weight")
        return cls(steps, directions, batch, hidden, get_str(node, "direction", "forward") == "reverse", batch_first)

    def position(self, direction: tirx.Expr, step: tirx.Expr | int) -> tirx.Expr:
        """The element of the sequence that a direction sees in a step; also the step in which it sees an element."""
        ahead = prim(step)
        back = prim(self.steps - 1) - ahead
        if self.directions == 1:
            return back if self.reverse else ahead
        return tirx.Select(tirx.EQ(direction, prim(1)), back, ahead)


@emits("RNN", "GRU", "LSTM")
def recurrent(ctx: Emitter, node: ir.Node) -> Sequence[Result | None]:
    """All states, the last state, and for an LSTM the last memory."""
    x, w, r, bias, lengths, *initial = [*node.inputs, *[None] * 8][:7]
    peepholes = node.inputs[7] if len(node.inputs) > 7 else None
    layout = _Layout.of(ctx, node)
    cell = Cell.of(node, layout.directions)
    dtype, width = ctx.dtype(x), _GATES[node.op_type] * layout.hidden
    bias_ = ctx.x(bias) if bias is not None else _zeros(ctx, [layout.directions, 2 * width], dtype)
    inputs = _input_products(ctx, layout, x, w, bias_, after_reset=node.op_type == "GRU" and cell.reset_after)
    count = 2 if node.op_type == "LSTM" else 1
    state = [_initial(ctx, layout, value, dtype) for value in initial[:count]]
    advance = _stepper(ctx, node.op_type, cell, layout, r, bias_, peepholes)
    lengths_ = None if lengths is None or _all_full(ctx, lengths, layout) else ctx.x(lengths)
    shown: State = []
    for step, taken in enumerate(inputs):
        new = advance(taken, state)
        if lengths_ is not None:
            new, visible = _within(ctx, layout, step, new, state, lengths_)
        else:
            visible = new[0]
        shown.append(visible)
        state = new
    results = [_stacked(ctx, layout, shown), *(_turned(layout, s) for s in state)]
    return results[: len(node.outputs)]


def _input_products(
    ctx: Emitter, layout: _Layout, x: ir.Value | None, w: ir.Value | None, bias: relax.Var, *, after_reset: bool
) -> State:
    """For each step what the inputs add to the gates: [1, D, B, G * H], biases included."""
    data = ctx.x(x)
    if layout.batch_first:
        data = ctx.emit(relax.op.permute_dims(data, [1, 0, 2]))
    width = ctx.shape(x)[2]
    rows = ctx.emit(relax.op.reshape(data, relax.ShapeExpr([prim(1), ctx.derived(layout.batch * layout.steps), width])))
    products = times(ctx, rows, w, transposed=True)

    def build(all_DRG: te.Tensor, bias_: te.Tensor) -> te.Tensor:
        gates = all_DRG.shape[2]

        def element(step: tirx.Expr, d: tirx.Expr, b: tirx.Expr, g: tirx.Expr) -> tirx.Expr:
            row = layout.position(d, step) * layout.batch + b
            own = all_DRG(d, row, g) + bias_(d, g)
            if not after_reset:
                return own + bias_(d, g + gates)
            return own + tirx.Select(g < 2 * layout.hidden, bias_(d, g + gates), tirx.const(0, str(bias_.dtype)))

        return te.compute((prim(layout.steps), all_DRG.shape[0], layout.batch, gates), element, name="inputs")

    steps = ctx.te(build, products, bias)
    if layout.steps == 1:
        return [steps]
    parts = ctx.emit(relax.op.split(steps, layout.steps, axis=0))
    return [ctx.emit(relax.TupleGetItem(parts, k)) for k in range(layout.steps)]


def _stepper(
    ctx: Emitter,
    op_type: str,
    cell: Cell,
    layout: _Layout,
    r: ir.Value | None,
    bias: relax.Var,
    peepholes: ir.Value | None,
) -> Callable[[relax.Var, State], State]:
    """One step: from the inputs of the step and the state to the next state."""
    hidden = layout.hidden
    recur = _recurrence(ctx, r)

    def rnn(taken: relax.Var, state: State) -> State:
        return [ctx.te(lambda x, p: rnn_step(cell, x, p, hidden), taken, recur(state[0]))]

    def lstm(taken: relax.Var, state: State) -> State:
        extra = [ctx.x(peepholes)] if peepholes is not None else []
        pair = ctx.te(
            lambda x, p, c, *peep: lstm_step(cell, x, p, c, hidden, peep[0] if peep else None),
            taken,
            recur(state[0]),
            state[1],
            *extra,
        )
        return [ctx.emit(relax.TupleGetItem(pair, 0)), ctx.emit(relax.TupleGetItem(pair, 1))]

    def gru(taken: relax.Var, state: State) -> State:
        last = state[0]
        own = recur(last)
        if cell.reset_after:
            return [ctx.te(lambda x, p, h, b: gru_step(cell, x, p, p, h, b, hidden), taken, own, last, bias)]
        passed = ctx.te(lambda x, p, h: gru_reset(cell, x, p, h, hidden), taken, own, last)
        return [
            ctx.te(lambda x, p, q, h, b: gru_step(cell, x, p, q, h, b, hidden), taken, own, recur(passed), last, bias)
        ]

    return {"RNN": rnn, "LSTM": lstm, "GRU": gru}[op_type]


def _recurrence(ctx: Emitter, r: ir.Value | None) -> Callable[[relax.Var], relax.Var]:
    """The product of a state [D, B, H] with the recurrence weight [D, G * H, H]."""
    if ctx.is_weight(r):
        return lambda state: times(ctx, state, r, transposed=True)
    columns = ctx.emit(relax.op.permute_dims(ctx.x(r), [0, 2, 1]))
    return lambda state: product(ctx, state, columns, columns.ty.shape.values[-1], None)


def _within(
    ctx: Emitter, layout: _Layout, step: int, new: State, old: State, lengths: relax.Var
) -> tuple[State, relax.Var]:
    """The state where the step is past a sequence's end: the old one; and what is shown there: zeros."""

    def choose(new_: te.Tensor, lengths_: te.Tensor, *old_: te.Tensor) -> te.Tensor:
        def element(d: tirx.Expr, b: tirx.Expr, j: tirx.Expr) -> tirx.Expr:
            other = old_[0](d, b, j) if old_ else tirx.const(0, str(new_.dtype))
            inside = layout.position(d, step) < tirx.Cast("int64", lengths_(b))
            return tirx.Select(inside, new_(d, b, j), other)

        return te.compute(new_.shape, element, name="within")

    kept = [ctx.te(choose, n, lengths, o) for n, o in zip(new, old, strict=True)]
    return kept, ctx.te(choose, new[0], lengths)


def _stacked(ctx: Emitter, layout: _Layout, shown: State) -> relax.Expr:
    """All states in the sequence's order: [T, D, B, H], or [B, T, D, H]."""
    shape = [prim(layout.steps), prim(layout.directions), layout.batch, prim(layout.hidden)]
    joined = ctx.emit(relax.op.concat(shown, axis=0)) if len(shown) > 1 else shown[0]
    states = ctx.emit(relax.op.reshape(joined, relax.ShapeExpr(shape)))
    if layout.directions > 1 or layout.reverse:

        def build(s: te.Tensor) -> te.Tensor:
            return te.compute(s.shape, lambda t, d, b, j: s(layout.position(d, t), d, b, j), name="in_order")

        states = ctx.te(build, states)
    return relax.op.permute_dims(states, [2, 0, 1, 3]) if layout.batch_first else states


def _turned(layout: _Layout, state: relax.Var) -> relax.Expr:
    return relax.op.permute_dims(state, [1, 0, 2]) if layout.batch_first else state


def _initial(ctx: Emitter, layout: _Layout, value: ir.Value | None, dtype: str) -> relax.Var:
    if value is None:
        return _zeros(ctx, [layout.directions, layout.batch, layout.hidden], dtype)
    return ctx.emit(_turned(layout, ctx.x(value)))


def _zeros(ctx: Emitter, shape: Sequence[int | tirx.Expr], dtype: str) -> relax.Var:
    return ctx.emit(relax.op.zeros(relax.ShapeExpr([prim(d) for d in shape]), dtype))


def _all_full(ctx: Emitter, lengths: ir.Value, layout: _Layout) -> bool:
    known = ctx.constant(lengths)
    return known is not None and bool((known == layout.steps).all())
