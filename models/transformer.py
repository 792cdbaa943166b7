"""The encoder and the decoder of PyTorch's own transformer (Vaswani et al. 2017), random weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from models.case import ModelCase
from models.seeding import seeded

Module = TypeVar("Module", bound=nn.Module)


class Decoder(nn.Module):
    """Targets `[B, S, D]` and memory `[B, T, D]`, both float32, to `[B, S, D]`; each position sees those before it."""

    def __init__(self, decoder: nn.TransformerDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, target: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """The last layer's hidden states."""
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        hidden: torch.Tensor = self.decoder(target, memory, tgt_mask=mask, tgt_is_causal=True)
        return hidden


def build_encoder(layers: int, width: int, heads: int, name: str, length: int = 64, seed: int = 0) -> ModelCase:
    """An encoder of any size."""
    with seeded(seed):
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True)
        module = _drawn(nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)).eval()
        inputs = torch.randn(1, length, width)
    return ModelCase(name, module, (inputs,))


def build_decoder(layers: int, width: int, heads: int, name: str, length: int = 64, seed: int = 0) -> ModelCase:
    """A decoder of any size; its memory is half as long again."""
    with seeded(seed):
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, batch_first=True)
        module = Decoder(_drawn(nn.TransformerDecoder(layer, layers))).eval()
        inputs = torch.randn(1, length, width), torch.randn(1, length * 3 // 2, width)
    return ModelCase(name, module, inputs)


def _drawn(module: Module) -> Module:
    """The module with every parameter drawn anew: PyTorch makes all layers copies of one."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.0, 0.1)
    return module
