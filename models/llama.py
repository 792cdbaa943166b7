"""Llama (Touvron et al. 2023) without a cache, random weights: grouped query heads and rotary position embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from models.bert import tokens
from models.case import ModelCase
from models.seeding import seeded

Config = TypeVar("Config", LlamaConfig, PhiConfig)


class Decoder(nn.Module):
    """Token ids and mask `[B, S] int64` to logits `[B, S, V] float32`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The next token's logits at each place."""
        result = self.network(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        logits: torch.Tensor = result.logits
        return logits


def build(config: LlamaConfig, name: str, length: int = 128, seed: int = 0) -> ModelCase:
    """A decoder of any size."""
    return _decoder(LlamaForCausalLM, config, name, length, seed)


def build_phi(config: PhiConfig, name: str, length: int = 128, seed: int = 0) -> ModelCase:
    """A Phi (Li et al. 2023) of any size: it rotates a part of each head, and adds attention and MLP side by side."""
    return _decoder(PhiForCausalLM, config, name, length, seed)


def _decoder(network: Callable[[Config], nn.Module], config: Config, name: str, length: int, seed: int) -> ModelCase:
    with seeded(seed):
        module = Decoder(network(config)).eval()
    return ModelCase(name, module, tokens(1, length, config.vocab_size))
