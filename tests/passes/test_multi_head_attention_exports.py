"""`nn.MultiheadAttention` in all its ways, and attention that is written by hand, as PyTorch exports them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.node_cases import OPSETS
from optimizer.ir.query import int_attribute
from tests.passes.exports import exported, only_attentions, tensors

HIDDEN = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
PADDED = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "padding": {"key_padding_mask": PADDED},
    "added padding": {"key_padding_mask": torch.zeros(2, 6).masked_fill(PADDED, -math.inf)},
    "condition": {"attn_mask": HIDDEN},
    "added": {"attn_mask": torch.zeros(6, 6).masked_fill(HIDDEN, -math.inf)},
    "added to each head": {"attn_mask": tensors((8, 6, 6))[0]},
    "both": {"key_padding_mask": PADDED, "attn_mask": HIDDEN},
}
WEIGHTS: dict[str, dict[str, bool]] = {
    "no weights": {"need_weights": False},
    "mean of the weights": {},
    "weights": {"average_attn_weights": False},
}


class SelfAttention(torch.nn.Module):
    """`x` to the result, and to the weights where they are asked for; the masks are inputs."""

    def __init__(self, names: tuple[str, ...], *, batch_first: bool, fixed: dict[str, Any], **options: bool) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(16, 4, batch_first=batch_first)
        torch.nn.init.normal_(self.attention.in_proj_bias)
        torch.nn.init.normal_(self.attention.out_proj.bias)
        self.names, self.fixed, self.options = names, fixed, options

    def forward(self, x: Any, *masks: Any) -> Any:
        given = dict(zip(self.names, masks, strict=True))
        result, weights = self.attention(x, x, x, **given, **self.fixed, **self.options)
        return result if weights is None else (result, weights)


def assert_one_attention(
    masks: dict[str, Any], weights: str, opset: int, folder: Path, *, batch_first: bool = True, causal: bool = False
) -> None:
    fixed = {"attn_mask": HIDDEN, "is_causal": True} if causal else {}
    module = SelfAttention(tuple(masks), batch_first=batch_first, fixed=fixed, **WEIGHTS[weights]).eval()
    x = tensors((2, 6, 16) if batch_first else (6, 2, 16))
    given = (*x, *masks.values())
    model = only_attentions(exported(module, given, folder / "mha.onnx", opset), 1, [t.numpy() for t in given])
    (node,) = [node for node in model.graph if node.op_type == "Attention"]
    assert int_attribute(node, "q_num_heads", 0) == 4
    assert len(node.outputs) == (1 if weights == "no weights" else 4)
    assert int_attribute(node, "is_causal", 0) == int(causal and not masks)
    assert len(model.graph.outputs) == (1 if weights == "no weights" else 2)


@pytest.mark.parametrize("weights", ["mean of the weights", "weights"])
def test_weights_that_are_asked_for(weights: str, tmp_path: Path) -> None:
    assert_one_attention({}, weights, 18, tmp_path)


def test_weights_that_nobody_takes(tmp_path: Path) -> None:
    class Ignoring(SelfAttention):
        def forward(self, x: Any, *masks: Any) -> Any:
            return super().forward(x, *masks)[0]

    module = Ignoring((), batch_first=True, fixed={}).eval()
    model = only_attentions(exported(module, tensors((2, 6, 16)), tmp_path / "mha.onnx", 20), 1)
    assert sorted(node.op_type for node in model.graph) == ["Add", "Add", "Attention", "MatMul", "MatMul", "Split"]


@pytest.mark.slow
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_and_kind_of_weights(mask: str, weights: str, batch_first: bool, tmp_path: Path) -> None:
    assert_one_attention(MASKS[mask], weights, 18, tmp_path, batch_first=batch_first)


@pytest.mark.slow
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_causal_of_every_opset(opset: int, weights: str, tmp_path: Path) -> None:
    assert_one_attention({}, weights, opset, tmp_path, causal=True)
    assert_one_attention(MASKS["padding"], weights, opset, tmp_path, causal=True)


# --- By hand ---


class ByHand(torch.nn.Module):
    """softmax(Q K^T) V with projections.

    Args:
        heads: Of keys and values.
        repeat: How they are repeated for the four of the queries.
        scale: What is scaled.
        cap: The soft cap, if any.
        causal: Whether later keys are hidden.
    """

    def __init__(
        self, heads: int, repeat: str, scale: str = "scores", cap: float | None = None, *, causal: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.repeat, self.scale, self.cap, self.causal = heads, repeat, scale, cap, causal
        self.query, self.out = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
        self.key, self.value = (torch.nn.Linear(32, heads * 8) for _ in range(2))

    def forward(self, x: Any) -> Any:
        batch, rows, _ = x.shape
        query = self.query(x).view(batch, rows, 4, 8).transpose(1, 2)
        key, value = (p(x).view(batch, rows, self.heads, 8).transpose(1, 2) for p in (self.key, self.value))
        key, value = self._repeated(key), self._repeated(value)
        factor = 1 / math.sqrt(8)
        query = query * {"query": factor, "both": math.sqrt(factor)}.get(self.scale, 1.0)
        key = key * {"key": factor, "both": math.sqrt(factor)}.get(self.scale, 1.0)
        scores = query @ key.transpose(-1, -2)
        scores = scores / math.sqrt(8) if self.scale == "scores" else scores
        scores = scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap
        if self.causal:
            scores = scores.masked_fill(~torch.ones(rows, rows, dtype=torch.bool).tril(), -math.inf)
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, rows, 32))

    def _repeated(self, given: Any) -> Any:
        batch, heads, rows, size = given.shape
        times = 4 // heads
        match self.repeat:
            case "interleave":
                return given.repeat_interleave(times, 1)
            case "expand":
                return given[:, :, None].expand(batch, heads, times, rows, size).reshape(batch, 4, rows, size)
            case "expand one head":
                return given.expand(batch, 4, rows, size)
            case "expand before":
                apart = given.transpose(1, 2)[:, :, :, None].expand(batch, rows, heads, times, size)
                return apart.reshape(batch, rows, 4, size).transpose(1, 2)
            case "repeat":
                return given[:, :, None].repeat(1, 1, times, 1, 1).view(batch, 4, rows, size)
            case "stack":
                return torch.stack([given] * times, 2).reshape(batch, 4, rows, size)
        return given


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize(
    ("module", "heads"),
    [
        (ByHand(4, "not"), 4),
        (ByHand(2, "interleave"), 2),
        (ByHand(2, "expand"), 2),
        (ByHand(2, "expand before"), 2),
        (ByHand(2, "repeat"), 2),
        (ByHand(2, "stack"), 2),
        (ByHand(1, "not"), 1),
        (ByHand(1, "interleave"), 1),
        (ByHand(1, "expand one head"), 1),
        (ByHand(4, "not", "query"), 4),
        (ByHand(4, "not", "key"), 4),
        (ByHand(4, "not", "both"), 4),
        (ByHand(2, "interleave", "both"), 2),
        (ByHand(2, "expand", "key"), 2),
        (ByHand(2, "interleave", "query", 5.0, causal=True), 2),
        (ByHand(4, "not", "scores", 5.0), 4),
    ],
)
def test_written_by_hand(module: ByHand, heads: int, dynamic: bool, tmp_path: Path) -> None:
    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("rows")},) if dynamic else None
    path = exported(module.eval(), tensors((2, 6, 32)), tmp_path / "hand.onnx", 18, sizes)
    given = [[tensors(shape)[0].numpy()] for shape in ((2, 6, 32), *([(3, 4, 32)] if dynamic else []))]
    model = only_attentions(path, 1, *given)
    (node,) = [node for node in model.graph if node.op_type == "Attention"]
    assert int_attribute(node, "kv_num_heads", 0) == heads
    assert int_attribute(node, "is_causal", 0) == int(module.causal)
    assert "Expand" not in {node.op_type for node in model.graph}
