"""Activation functions, each a formula over one scalar.

Exponentials, tangents and error functions are ordinary intrinsics: the target replaces them by what it can vectorise.
"""

from __future__ import annotations

import math

import onnx_ir as ir
from tvm import tirx

from backends.relax.attributes import get_float, get_str
from backends.relax.emitter import Emitter
from backends.relax.known import forward
from backends.relax.pointwise import pointwise
from backends.relax.registry import emits
from backends.relax.scalars import minus, one_like, scalar_type, zero_like
from backends.relax.values import Refused, Result

_SELU_ALPHA = 1.67326319217681884765625
_SELU_GAMMA = 1.05070102214813232421875


@emits("Relu")
def relu(ctx: Emitter, node: ir.Node) -> Result:
    """`x` where it is not negative; NaN stays."""
    return pointwise(ctx, node.inputs, lambda x: tirx.Select(x < zero_like(x), zero_like(x), x), "relu")


@emits("Sigmoid")
def sigmoid(ctx: Emitter, node: ir.Node) -> Result:
    """1 / (1 + exp(-x))."""
    return pointwise(ctx, node.inputs, tirx.sigmoid, "sigmoid")


@emits("LeakyRelu")
def leaky_relu(ctx: Emitter, node: ir.Node) -> Result:
    """`x`, or alpha * x where it is negative."""
    alpha = get_float(node, "alpha", 0.01)
    return pointwise(ctx, node.inputs, lambda x: tirx.Select(x < zero_like(x), _like(alpha, x) * x, x), "leaky_relu")


@emits("ThresholdedRelu")
def thresholded_relu(ctx: Emitter, node: ir.Node) -> Result:
    """`x` where it is above alpha, else 0."""
    alpha = get_float(node, "alpha", 1.0)
    return pointwise(ctx, node.inputs, lambda x: tirx.Select(x > _like(alpha, x), x, zero_like(x)), "thresholded_relu")


@emits("Elu")
def elu(ctx: Emitter, node: ir.Node) -> Result:
    """`x`, or alpha * (exp(x) - 1) where it is negative."""
    alpha = get_float(node, "alpha", 1.0)

    def formula(x: tirx.Expr) -> tirx.Expr:
        return tirx.Select(x < zero_like(x), _like(alpha, x) * (tirx.exp(x) - one_like(x)), x)

    return pointwise(ctx, node.inputs, formula, "elu")


@emits("Selu")
def selu(ctx: Emitter, node: ir.Node) -> Result:
    """`gamma * x`, or gamma * alpha * (exp(x) - 1) where x is not positive."""
    alpha, gamma = get_float(node, "alpha", _SELU_ALPHA), get_float(node, "gamma", _SELU_GAMMA)

    def formula(x: tirx.Expr) -> tirx.Expr:
        curved = _like(alpha, x) * (tirx.exp(x) - one_like(x))
        return _like(gamma, x) * tirx.Select(x <= zero_like(x), curved, x)

    return pointwise(ctx, node.inputs, formula, "selu")


@emits("Celu")
def celu(ctx: Emitter, node: ir.Node) -> Result:
    """`x`, or alpha * (exp(x / alpha) - 1) where it is negative."""
    alpha = get_float(node, "alpha", 1.0)

    def formula(x: tirx.Expr) -> tirx.Expr:
        scale = _like(alpha, x)
        return tirx.Select(x < zero_like(x), scale * (tirx.exp(x / scale) - one_like(x)), x)

    return pointwise(ctx, node.inputs, formula, "celu")


@emits("Gelu")
def gelu(ctx: Emitter, node: ir.Node) -> Result:
    """`x` times the normal distribution function of x, exactly or by its tanh approximation."""
    approximate = get_str(node, "approximate", "none")
    if approximate not in ("none", "tanh"):
        raise Refused(f"approximate={approximate!r}")

    def formula(x: tirx.Expr) -> tirx.Expr:
        half = _like(0.5, x)
        if approximate == "none":
            return half * x * (one_like(x) + tirx.erf(x * _like(math.sqrt(0.5), x)))
        inner = _like(math.sqrt(2 / math.pi), x) * (x + _like(0.044715, x) * x * x * x)
        return half * x * (one_like(x) + tirx.tanh(inner))

    return pointwise(ctx, node.inputs, formula, "gelu")


@emits("HardSigmoid")
def hard_sigmoid(ctx: Emitter, node: ir.Node) -> Result:
    """`alpha * x + beta`, kept between 0 and 1."""
    alpha, beta = get_float(node, "alpha", 0.2), get_float(node, "beta", 0.5)
    return pointwise(ctx, node.inputs, lambda x: _unit_interval(_like(alpha, x) * x + _like(beta, x)), "hard_sigmoid")


@emits("HardSwish")
def hard_swish(ctx: Emitter, node: ir.Node) -> Result:
    """`x * HardSigmoid(x)` with alpha = 1/6."""
    return pointwise(ctx, node.inputs, lambda x: x * _unit_interval(x * _like(1 / 6, x) + _like(0.5, x)), "hard_swish")


@emits("Softplus")
def softplus(ctx: Emitter, node: ir.Node) -> Result:
    """log(1 + exp(x))."""
    return pointwise(ctx, node.inputs, _softplus, "softplus")


@emits("Mish")
def mish(ctx: Emitter, node: ir.Node) -> Result:
    """`x * tanh(Softplus(x))`."""
    return pointwise(ctx, node.inputs, lambda x: x * tirx.tanh(_softplus(x)), "mish")


@emits("Softsign")
def softsign(ctx: Emitter, node: ir.Node) -> Result:
    """`x / (1 + |x|)`."""
    return pointwise(ctx, node.inputs, lambda x: x / (one_like(x) + tirx.abs(x)), "softsign")


@emits("Swish")
def swish(ctx: Emitter, node: ir.Node) -> Result:
    """`x * Sigmoid(alpha * x)`."""
    alpha = get_float(node, "alpha", 1.0)
    return pointwise(ctx, node.inputs, lambda x: _swish(x, alpha), "swish")


@emits("SwiGLU")
def swiglu(ctx: Emitter, node: ir.Node) -> Result:
    """Swish of the gate, times the value."""
    alpha = get_float(node, "alpha", 1.0)
    return pointwise(ctx, node.inputs, lambda gate, value: _swish(gate, alpha) * value, "swiglu")


@emits("Shrink")
def shrink(ctx: Emitter, node: ir.Node) -> Result:
    """`x` moved towards zero by bias outside [-lambd, lambd], 0 inside."""
    bias, lambd = get_float(node, "bias", 0.0), get_float(node, "lambd", 0.5)

    def formula(x: tirx.Expr) -> tirx.Expr:
        wide = x if "float" in scalar_type(x) else tirx.Cast("float32", x)
        offset, limit = _like(bias, wide), _like(lambd, wide)
        above = tirx.Select(wide > limit, wide - offset, zero_like(wide))
        return tirx.Select(wide < -limit, wide + offset, above)

    return pointwise(ctx, node.inputs, formula, "shrink")


@emits("Dropout")
def dropout(ctx: Emitter, node: ir.Node) -> list[Result | None]:
    """The identity, with a mask that keeps everything: only inference is expressed."""
    x, _, training = (*node.inputs, None, None)[:3]
    if training is not None and ctx.required_constant(training, "training_mode").item():
        raise Refused("a Dropout in training mode is random")
    kept = pointwise(ctx, [x], lambda v: tirx.const(True, "bool"), "dropout_mask", "bool") if _wanted(node, 1) else None
    return [forward(ctx, x), kept]


def _wanted(node: ir.Node, output: int) -> bool:
    return len(node.outputs) > output and bool(node.outputs[output].name)


def _like(value: float, x: tirx.Expr) -> tirx.Expr:
    return tirx.const(value, scalar_type(x))


def _unit_interval(x: tirx.Expr) -> tirx.Expr:
    """`x` kept between 0 and 1; NaN stays."""
    zero, one = zero_like(x), one_like(x)
    low = tirx.Select(x < zero, zero, x)
    return tirx.Select(low > one, one, low)


def _swish(x: tirx.Expr, alpha: float) -> tirx.Expr:
    return x * tirx.sigmoid(x if alpha == 1.0 else _like(alpha, x) * x)


def _softplus(x: tirx.Expr) -> tirx.Expr:
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)); log1p keeps its precision near 0 by Kahan's quotient."""
    zero, one = zero_like(x), one_like(x)
    z = tirx.exp(-tirx.abs(x))
    u = one + z
    log1p = tirx.Select(tirx.EQ(u, one), z, tirx.log(u) * z / tirx.Select(tirx.EQ(u, one), one, minus(u, one)))
    return tirx.Select(x < zero, zero, x) + log1p
