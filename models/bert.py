"""BERT (Devlin et al. 2018), random weights."""

from __future__ import annotations

import torch
from torch import nn
from transformers import BertConfig, BertModel

from models.case import ModelCase
from models.seeding import seeded


class Encoder(nn.Module):
    """Token ids and mask `[B, S] int64` to hidden states `[B, S, D] float32`."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The last layer's hidden states."""
        hidden: torch.Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


def tokens(batch: int, length: int, vocabulary: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and a full mask, `[B, S] int64` each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (batch, length), generator=generator)
    return ids, torch.ones_like(ids)


def build(config: BertConfig, name: str, batch: int = 1, length: int = 128, seed: int = 0) -> ModelCase:
    """An encoder of any size."""
    with seeded(seed):
        module = Encoder(BertModel(config, add_pooling_layer=False)).eval()
    return ModelCase(name, module, tokens(batch, length, config.vocab_size))


def base() -> ModelCase:
    """BERT-base: 12 layers of 768, 109 million parameters, 128 tokens."""
    return build(BertConfig(), "bert-base")


def base_512() -> ModelCase:
    """BERT-base at 512 tokens, the most that it takes."""
    return build(BertConfig(), "bert-base-512", length=512)
