"""GPT-2 (Radford et al. 2019) without a cache, random weights."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from models.bert import tokens
from models.case import ModelCase
from models.seeding import seeded


class Decoder(nn.Module):
    """Token ids `[B, S] int64` to logits `[B, S, V] float32`."""

    def __init__(self, gpt: GPT2LMHeadModel) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The next token's logits at each place."""
        logits: torch.Tensor = self.gpt(input_ids=input_ids, use_cache=False).logits
        return logits


def build(config: GPT2Config, name: str, length: int = 128, seed: int = 0) -> ModelCase:
    """A decoder of any size."""
    with seeded(seed):
        module = Decoder(GPT2LMHeadModel(config)).eval()
    return ModelCase(name, module, tokens(1, length, config.vocab_size)[:1])


def small() -> ModelCase:
    """GPT-2 small: 12 layers of 768, 124 million parameters, 128 tokens."""
    return build(GPT2Config(), "gpt2")
