"""Attention as PyTorch exports it: every one becomes one node, and ONNX Runtime computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.node_contestants import run
from benchmarks.nodes import TRANSFORMERS
from tests.passes.exports import check, exported, tensors


def attention_function(**options: Any) -> Any:
    class Function(torch.nn.Module):
        def forward(self, query: Any, key: Any, value: Any, mask: Any = None) -> Any:
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)

    return Function()


@pytest.mark.parametrize(
    ("options", "heads", "masked", "left"),
    [
        ({}, 4, None, 1),
        ({"is_causal": True, "scale": 0.3}, 4, None, 1),
        ({"is_causal": True, "enable_gqa": True}, 2, None, 1),
        ({}, 4, "bool", 2),
    ],
)
def test_scaled_dot_product_attention(
    options: dict[str, Any], heads: int, masked: str | None, left: int, tmp_path: Path
) -> None:
    inputs = tensors((2, 4, 6, 8), (2, heads, 6, 8), (2, heads, 6, 8))
    if masked:
        inputs = (*inputs, torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.3)
    path = exported(attention_function(**options), inputs, tmp_path / "sdpa.onnx", 18)
    assert check(path, 1).total() == left


def test_multi_head_attention_of_pytorch(tmp_path: Path) -> None:
    class SelfAttention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(16, 4, batch_first=True)
            torch.nn.init.normal_(self.attention.in_proj_bias)
            torch.nn.init.normal_(self.attention.out_proj.bias)

        def forward(self, x: Any) -> Any:
            return self.attention(x, x, x, need_weights=False)[0]

    path = exported(SelfAttention().eval(), tensors((2, 6, 16)), tmp_path / "mha.onnx", 20)
    found = check(path, 1)
    assert found == Counter({"MatMul": 2, "Add": 2, "Split": 1, "Attention": 1})


@pytest.mark.parametrize("dynamic", [False, True])
def test_by_hand_with_einsum(dynamic: bool, tmp_path: Path) -> None:
    class SelfAttention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.projections = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(4))

        def forward(self, x: Any) -> Any:
            *inputs, out = self.projections
            query, key, value = (layer(x).unflatten(-1, (4, 8)) for layer in inputs)
            weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", query, key) * 8**-0.5, -1)
            return out(torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2))

    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},) if dynamic else None
    path = exported(SelfAttention().eval(), tensors((2, 6, 32)), tmp_path / "einsum.onnx", 20, sizes)
    assert check(path, 1) == Counter({"MatMul": 2, "Add": 2, "Split": 1, "Attention": 1})


def test_rotary_embeddings_and_grouped_heads(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    from models.llama import build

    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    options: dict[str, Any] = {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**{**options, "attn_implementation": "eager"})
    case = build(config, "llama", length=6)
    path = exported(case.model, tuple(case.example_inputs), tmp_path / "llama.onnx", 18)
    found = check(path, 2, rotations=4)
    assert found["Transpose"] == found["Reshape"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_exporter_setting(name: str, tmp_path: Path) -> None:
    from benchmarks import node_cases

    export: Callable[[str, Path], list[node_cases.NodeCase]] = node_cases.exported
    for case in export(name, tmp_path):
        left = run("tersor", case.path, case.inputs)
        assert (left.fused, left.unfused) == (case.attentions, 0), case
        assert left.error is not None
        assert left.error < 1e-4, case
