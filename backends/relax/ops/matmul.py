"""MatMul and Gemm."""

from __future__ import annotations

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_float, get_int
from backends.relax.byte_products import byte_product
from backends.relax.contraction import contract
from backends.relax.emitter import Emitter
from backends.relax.registry import emits
from backends.relax.values import Result


@emits("MatMul")
def matmul(ctx: Emitter, node: ir.Node) -> Result:
    """[..., M, K] x [..., K, N], with numpy's rules for vectors."""
    quantized = byte_product(ctx, node.inputs[0], node.inputs[1])
    return contract(ctx, node.inputs[0], node.inputs[1]) if quantized is None else quantized


@emits("Gemm")
def gemm(ctx: Emitter, node: ir.Node) -> Result:
    """Scaled products: alpha * A' * B' + beta * C; alpha goes into a constant B, beta into a constant C."""
    a, b = node.inputs[0], node.inputs[1]
    alpha, beta = get_float(node, "alpha", 1.0), get_float(node, "beta", 1.0)
    transposed_a, transposed_b = (bool(get_int(node, name, 0)) for name in ("transA", "transB"))
    result = None if transposed_a else byte_product(ctx, a, b, transposed=transposed_b, alpha=alpha)
    if result is None:
        result = contract(ctx, a, b, transposed_a=transposed_a, transposed_b=transposed_b, alpha=alpha)
    c = node.inputs[2] if len(node.inputs) > 2 else None
    if c is None or beta == 0.0:
        return result
    addend = ctx.operand(c)
    if beta != 1.0:
        addend = ctx.emit(relax.op.multiply(addend, relax.const(beta, ctx.dtype(c))))
    return relax.op.add(result, addend)


__all__ = ["gemm", "matmul", "te", "tirx"]
