"""How long a kernel takes on a GPU: an estimate of the model, never a measurement; see docs/gpu-model.md."""

from __future__ import annotations

from tvm.tirx import Var

from backends.gpu import attention, four_bits, matmul
from backends.gpu.attention_tile import AttentionTile, estimate_attention
from backends.gpu.blocked import best_of
from backends.gpu.conv2d import Convolution
from backends.gpu.operands import element_bytes
from backends.gpu.tensor_attention_tile import TensorAttentionTile, estimate_tensor_attention
from backends.gpu.tensor_tile import TensorTile, estimate_tensor
from backends.gpu.tile_model import Estimate, Sizes, Tile, estimate
from backends.relax.kernel import Kernel
from backends.relax.loops import known, loads_of, product
from optimizer.gpus import Gpu

__all__ = ["forecast"]

_UNKNOWN_ELEMENTS = 1 << 18


def forecast(kernel: Kernel, gpu: Gpu) -> Estimate:
    """The estimate for a kernel (after `backends.relax.kernel.inline`); symbolic sizes are guessed.

    What no rule for a heavy operator takes is bound by memory: its inputs and outputs pass once.
    """
    stage = kernel.stages[0]
    parts = matmul.take_apart(stage)
    if parts is not None:
        sizes = matmul.sizes_of(parts)
        return _of_product(sizes, best_of(sizes, gpu, parts.rows_together), gpu)
    if stage.kind == "conv2d":
        convolution = Convolution(stage)
        return _of_product(convolution.sizes(), convolution.tile(gpu), gpu)
    if stage.kind == four_bits.KIND:
        sizes = four_bits.sizes_of(stage)
        own = four_bits.tile_of(stage, gpu)
        return (
            estimate_tensor(sizes, own, gpu, decoded=True) if isinstance(own, TensorTile) else estimate(sizes, own, gpu)
        )
    found = attention.AttentionParts.of(kernel)
    sizes_of_heads = None if found is None else attention.sizes_of(found)
    tile = None if found is None else attention.tile_of(found, gpu)
    if sizes_of_heads is not None and isinstance(tile, TensorAttentionTile):
        return estimate_tensor_attention(sizes_of_heads, tile, gpu)
    if sizes_of_heads is not None and isinstance(tile, AttentionTile):
        return estimate_attention(sizes_of_heads, tile, gpu)
    return _of_memory(kernel, gpu)


def _of_product(sizes: Sizes, tile: Tile | TensorTile, gpu: Gpu) -> Estimate:
    return estimate_tensor(sizes, tile, gpu) if isinstance(tile, TensorTile) else estimate(sizes, tile, gpu)


def _of_memory(kernel: Kernel, gpu: Gpu) -> Estimate:
    """Inputs and outputs pass once."""
    loads = {load.source: None for stage in kernel.stages for load in loads_of(stage.value)}
    buffers = {b: None for b in [*loads, *(s.buffer for s in kernel.stages)] if kernel.is_output(b)}
    moved = float(sum(_bytes(buffer) for buffer in buffers))
    seconds = moved / gpu.memory_bytes_a_second
    flops = float(sum(known(product([a.extent for a in s.axes])) or _UNKNOWN_ELEMENTS for s in kernel.stages))
    bound = "memory" if seconds > gpu.launch_seconds else "launch"
    return Estimate(gpu.launch_seconds + seconds, flops, moved, moved, 1.0, bound)


def _bytes(buffer: Var) -> int:
    return (known(product(list(buffer.shape))) or _UNKNOWN_ELEMENTS) * element_bytes(str(buffer.dtype))
