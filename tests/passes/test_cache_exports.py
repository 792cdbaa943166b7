"""Decoders with a cache as PyTorch exports them: past keys and values come in, the grown ones go out."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.node_cases import ATTENTION, OPSETS
from models.seeding import seeded
from optimizer.ir.query import int_attribute
from tests.passes.exports import exported, only_attentions

WORDS, WIDTH, LAYERS, SIZE = 50, 32, 2, 8
HEADS = {"GPT-2": 4, "Llama": 2, "Gemma 2": 2}
"""Of keys and values; all have four for queries."""


class Cached(torch.nn.Module):
    """Token ids, perhaps a mask, and keys and values of each layer to logits, and keys and values of each layer."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Any, *rest: Any) -> tuple[Any, ...]:
        from transformers.cache_utils import DynamicCache

        past, cache = rest[-2 * LAYERS :], DynamicCache()
        for layer in range(LAYERS):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        mask = rest[0] if len(rest) > 2 * LAYERS else None
        result = self.network(input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        grown = (part for layer in result.past_key_values.layers for part in (layer.keys, layer.values))
        return (result.logits, *grown)


def network(name: str, attention: str) -> Any:
    library: Any = importlib.import_module("transformers")

    words: dict[str, Any] = {
        "vocab_size": WORDS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attn_implementation": attention,
    }
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    with seeded(0):
        match name:
            case "GPT-2":
                config: Any = library.GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=4, **words)
                return library.GPT2LMHeadModel(config).eval()
            case "Llama":
                config = library.LlamaConfig(**{**sizes, **heads, **words})
                return library.LlamaForCausalLM(config).eval()
            case _:
                config = library.Gemma2Config(**{**sizes, **heads, **words, "head_dim": SIZE, "sliding_window": 4})
                return library.Gemma2ForCausalLM(config).eval()


def inputs(name: str, batch: int, rows: int, past: int, *, masked: bool) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(0)
    yield torch.randint(0, WORDS, (batch, rows), generator=generator)
    if masked:
        mask = torch.ones(batch, past + rows, dtype=torch.int64)
        mask[-1, :2] = 0
        yield mask
    for _ in range(2 * LAYERS):
        yield torch.randn(batch, HEADS[name], past, SIZE, generator=generator)


def arrays(*sizes: Any, masked: bool) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in inputs(*sizes, masked=masked)]


def dynamic(*, masked: bool) -> tuple[Any, ...]:
    batch, rows, past = (torch.export.Dim(name) for name in ("batch", "rows", "past"))
    mask = [{0: batch, 1: torch.export.Dim.AUTO}] if masked else []
    return (*({0: batch, 1: rows}, *mask), *[({0: batch, 2: past})] * (2 * LAYERS))


def exported_cache(
    name: str, attention: str, opset: int, folder: Path, *, rows: int, masked: bool, sizes: bool
) -> Path:
    given = tuple(inputs(name, 2, rows, 5, masked=masked))
    first, *rest = dynamic(masked=masked)
    shapes = (first, tuple(rest)) if sizes else None
    return exported(Cached(network(name, attention)), given, folder / "cache.onnx", opset, shapes)


def assert_cached(path: Path, *given: list[np.ndarray], causal: bool) -> None:
    """Each attention takes the past in and gives it out, grown; the causal mask is one of its attributes or not."""
    model = only_attentions(path, LAYERS, *given)
    for node in model.graph:
        if node.op_type == "Attention":
            assert node.inputs[4] in model.graph.inputs
            assert node.outputs[1] in model.graph.outputs
            assert int_attribute(node, "is_causal", 0) == int(causal)


def test_one_step_of_a_decoder(tmp_path: Path) -> None:
    path = exported_cache("Llama", "eager", 18, tmp_path, rows=1, masked=True, sizes=False)
    assert_cached(path, arrays("Llama", 2, 1, 5, masked=True), causal=False)


@pytest.mark.slow
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_cache_of_every_exporter_setting(name: str, attention: str, opset: int, tmp_path: Path) -> None:
    for rows in (1, 3):
        path = exported_cache(name, attention, opset, tmp_path, rows=rows, masked=True, sizes=False)
        assert_cached(path, arrays(name, 2, rows, 5, masked=True), causal=False)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_cache_of_any_length(name: str, attention: str, opset: int, masked: bool, tmp_path: Path) -> None:
    path = exported_cache(name, attention, opset, tmp_path, rows=3, masked=masked, sizes=True)
    # What PyTorch exports of Llama at opset 23, ONNX Runtime 1.31.1 can only run with a batch of one.
    batches = (1, 1) if (name, opset) == ("Llama", 23) else (2, 3)
    sizes = zip(batches, (3, 4), (5, 2), strict=True)
    given = [arrays(name, batch, rows, past, masked=masked) for batch, rows, past in sizes]
    assert_cached(path, *given, causal=not masked)


@pytest.mark.slow
@pytest.mark.parametrize("opset", OPSETS)
def test_cache_with_a_soft_cap_and_a_window(opset: int, tmp_path: Path) -> None:
    path = exported_cache("Gemma 2", "eager", opset, tmp_path, rows=3, masked=True, sizes=False)
    model = only_attentions(path, LAYERS, arrays("Gemma 2", 2, 3, 5, masked=True))
    assert all("softcap" in node.attributes for node in model.graph if node.op_type == "Attention")
