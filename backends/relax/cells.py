"""The cells of recurrent operators: what one step computes from its inputs, the product of the state, and the state.

Shape letters: D directions, B batch, H hidden units, G gates. Gates lie one after the other: [D, B, G * H].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from tvm import te, tirx

from backends.relax.attributes import get_float, get_int
from backends.relax.values import Refused

Activation = Callable[[tirx.Expr], tirx.Expr]
_Parametric = Callable[[tirx.Expr, tirx.Expr, tirx.Expr], tirx.Expr]


def _zero(x: tirx.Expr) -> tirx.Expr:
    return tirx.const(0, str(x.expr_ty()))


def _one(x: tirx.Expr) -> tirx.Expr:
    return tirx.const(1, str(x.expr_ty()))


_ACTIVATIONS: dict[str, tuple[_Parametric, float, float]] = {
    "relu": (lambda x, a, b: tirx.max(x, _zero(x)), 0, 0),
    "tanh": (lambda x, a, b: tirx.tanh(x), 0, 0),
    "sigmoid": (lambda x, a, b: tirx.sigmoid(x), 0, 0),
    "affine": (lambda x, a, b: a * x + b, 1, 0),
    "leakyrelu": (lambda x, a, b: tirx.Select(x < _zero(x), a * x, x), 0.01, 0),
    "thresholdedrelu": (lambda x, a, b: tirx.Select(x >= a, x, _zero(x)), 1, 0),
    "scaledtanh": (lambda x, a, b: a * tirx.tanh(b * x), 1, 1),
    "hardsigmoid": (lambda x, a, b: tirx.min(tirx.max(a * x + b, _zero(x)), _one(x)), 0.2, 0.5),
    "elu": (lambda x, a, b: tirx.Select(x < _zero(x), a * (tirx.exp(x) - _one(x)), x), 1, 0),
    "softsign": (lambda x, a, b: x / (_one(x) + tirx.abs(x)), 0, 0),
    "softplus": (lambda x, a, b: tirx.max(x, _zero(x)) + tirx.log(_one(x) + tirx.exp(-tirx.abs(x))), 0, 0),
}
"""Name -> function of x, alpha and beta, with their defaults."""

_WITH_ALPHA = {"affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu"}
_WITH_BETA = {"affine", "scaledtanh", "hardsigmoid"}
_DEFAULTS = {"RNN": ("tanh",), "GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}


@dataclass(frozen=True)
class Cell:
    """The functions of a recurrent node, and its switches.

    Attributes:
        functions: the activations, in the operator's order (f, g, h).
        coupled: the forget gate of an LSTM is one minus its input gate.
        reset_after: the reset gate of a GRU acts on the product of the state rather than on the state.
    """

    functions: tuple[Activation, ...]
    coupled: bool
    reset_after: bool

    @classmethod
    def of(cls, node: ir.Node, directions: int) -> Cell:
        """The cell that the attributes describe.

        Raises:
            Refused: the directions differ in their functions, or a function is unknown.
        """
        defaults = _DEFAULTS[node.op_type]
        names = [name.lower() for name in _strings(node, "activations")] or list(defaults) * directions
        if len(names) != len(defaults) * directions:
            raise Refused(f"{len(names)} activations")
        chosen = _parameters(node, names)
        once = chosen[: len(defaults)]
        if once * directions != chosen:
            raise Refused("the directions differ in their activations")
        clip = get_float(node, "clip", 0.0)
        return cls(
            # ONNX Runtime bounds what enters the gates, not the memory (h, the third function).
            tuple(_activation(*c, clip if place < 2 else 0.0) for place, c in enumerate(once)),
            get_int(node, "input_forget", 0) == 1,
            get_int(node, "linear_before_reset", 0) == 1,
        )


def rnn_step(cell: Cell, x: te.Tensor, product: te.Tensor, hidden: int) -> te.Tensor:
    """The next state from the inputs [1, D, B, H] and the product [D, B, H] of the last one."""
    gate = _gate(x, product, hidden)
    return te.compute(_state_shape(product, hidden), lambda *i: cell.functions[0](gate(0, *i)), name="hidden")


def lstm_step(
    cell: Cell, x: te.Tensor, product: te.Tensor, memory: te.Tensor, hidden: int, peepholes: te.Tensor | None
) -> list[te.Tensor]:
    """The next state and the next memory, [D, B, H] each; gates in the order input, output, forget, cell."""
    f, g, h = cell.functions
    gate = _gate(x, product, hidden)
    shape = _state_shape(product, hidden)

    def seen(which: int, state: te.Tensor, d: tirx.Expr, b: tirx.Expr, j: tirx.Expr) -> tirx.Expr:
        value = gate((0, 1, 2)[which], d, b, j)
        return value if peepholes is None else value + peepholes(d, j + which * hidden) * state(d, b, j)

    def memorize(*i: tirx.Expr) -> tirx.Expr:
        taken = f(seen(0, memory, *i))
        kept = _one(taken) - taken if cell.coupled else f(seen(2, memory, *i))
        return kept * memory(*i) + taken * g(gate(3, *i))

    new = te.compute(shape, memorize, name="memory")
    return [te.compute(shape, lambda *i: f(seen(1, new, *i)) * h(new(*i)), name="hidden"), new]


def gru_reset(cell: Cell, x: te.Tensor, product: te.Tensor, state: te.Tensor, hidden: int) -> te.Tensor:
    """The state behind the reset gate, [D, B, H], for a GRU whose reset gate acts on the state."""
    gate = _gate(x, product, hidden)
    return te.compute(state.shape, lambda *i: cell.functions[0](gate(1, *i)) * state(*i), name="reset")


def gru_step(
    cell: Cell,
    x: te.Tensor,
    product: te.Tensor,
    candidate: te.Tensor,
    state: te.Tensor,
    bias: te.Tensor,
    hidden: int,
) -> te.Tensor:
    """The next state [D, B, H]; gates in the order update, reset, hidden.

    `candidate` is the product from which the hidden gate is made: of the state, or of what the reset gate lets through;
    the last part of `bias` [D, 6 * H] is behind the reset gate where that acts on the product.
    """
    f, g = cell.functions
    gate = _gate(x, product, hidden)

    def element(d: tirx.Expr, b: tirx.Expr, j: tirx.Expr) -> tirx.Expr:
        update = f(gate(0, d, b, j))
        inner = candidate(d, b, j + 2 * hidden)
        if cell.reset_after:
            inner = f(gate(1, d, b, j)) * (inner + bias(d, j + 5 * hidden))
        proposed = g(x(0, d, b, j + 2 * hidden) + inner)
        return (_one(update) - update) * proposed + update * state(d, b, j)

    return te.compute(state.shape, element, name="hidden")


def _gate(x: te.Tensor, product: te.Tensor, hidden: int) -> Callable[..., tirx.Expr]:
    def gate(k: int, d: tirx.Expr, b: tirx.Expr, j: tirx.Expr) -> tirx.Expr:
        return x(0, d, b, j + k * hidden) + product(d, b, j + k * hidden)

    return gate


def _state_shape(product: te.Tensor, hidden: int) -> tuple[tirx.Expr, ...]:
    return (product.shape[0], product.shape[1], tirx.const(hidden, "int64"))


def _parameters(node: ir.Node, names: Sequence[str]) -> list[tuple[str, float, float]]:
    """Each function with its alpha and beta; those are listed only for the functions that have one."""
    unknown = [name for name in names if name not in _ACTIVATIONS]
    if unknown:
        raise Refused(f"activation {unknown[0]!r}")
    alphas, betas = _floats(node, "activation_alpha"), _floats(node, "activation_beta")
    if len(alphas) > len([n for n in names if n in _WITH_ALPHA]) or len(betas) > len(
        [n for n in names if n in _WITH_BETA]
    ):
        raise Refused("activation_alpha or activation_beta does not fit the activations")
    chosen = []
    for name in names:
        _, alpha, beta = _ACTIVATIONS[name]
        if name in _WITH_ALPHA and alphas:
            alpha = alphas.pop(0)
        if name in _WITH_BETA and betas:
            beta = betas.pop(0)
        chosen.append((name, alpha, beta))
    return chosen


def _activation(name: str, alpha: float, beta: float, clip: float) -> Activation:
    function = _ACTIVATIONS[name][0]

    def activate(x: tirx.Expr) -> tirx.Expr:
        dtype = str(x.expr_ty())
        if clip > 0:
            x = tirx.min(tirx.max(x, tirx.const(-clip, dtype)), tirx.const(clip, dtype))
        return function(x, tirx.const(alpha, dtype), tirx.const(beta, dtype))

    return activate


def _strings(node: ir.Node, name: str) -> list[str]:
    attr = node.attributes.get(name)
    return [] if attr is None else list(attr.as_strings())


def _floats(node: ir.Node, name: str) -> list[float]:
    attr = node.attributes.get(name)
    return [] if attr is None else list(attr.as_floats())
