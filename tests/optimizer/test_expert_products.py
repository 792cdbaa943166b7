"""Mixtures of experts are exported, and every expert's rows get its own product."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimizer import optimize

torch = pytest.importorskip("torch")


class Grouped(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Products of rows `[S, 16]` with the matrices of 3 experts."""

    def __init__(self, *, fallback: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights = torch.nn.Parameter(torch.randn(3, 16, 8))
        self.fallback = fallback

    def forward(self, rows: Any, offs: Any) -> Any:
        if self.fallback:
            return torch.ops.transformers.grouped_mm_fallback(rows, self.weights, offs)
        rows, weights = rows.bfloat16(), self.weights.bfloat16()  # it is exported for no other type
        return torch.nn.functional.grouped_mm(rows, weights, offs=offs).float()


def relative(found: Any, expected: Any) -> float:
    assert found.shape == tuple(expected.shape)
    return float(np.linalg.norm(found - expected.numpy()) / np.linalg.norm(expected.numpy()))


@pytest.mark.parametrize(
    ("target", "fallback"),
    [("cpu", False), ("cpu", True), ("onnx", True)],  # ONNX Runtime has no products of bfloat16
)
def test_rows_of_experts(target: str, fallback: bool) -> None:
    pytest.importorskip("transformers.integrations.moe")
    module, rows = Grouped(fallback=fallback), torch.randn(10, 16)
    offs = torch.tensor([2, 7, 10], dtype=torch.int32)
    compiled = optimize(module, target, example_inputs=(rows, offs), cache=False, progress=False)
    for ends in ([2, 7, 10], [0, 0, 10], [10, 10, 10], [3, 3, 10]):  # experts without rows, too
        offs = torch.tensor(ends, dtype=torch.int32)
        error = relative(compiled(rows.numpy(), offs.numpy()), module(rows, offs).detach())
        assert error < (1e-6 if fallback else 1e-2)


def test_rows_of_no_expert_are_zero() -> None:
    pytest.importorskip("transformers.integrations.moe")
    module, rows, offs = Grouped(fallback=True), torch.randn(10, 16), torch.tensor([2, 5, 8])
    compiled = optimize(module, "cpu", example_inputs=(rows, offs), cache=False, progress=False)
    found = compiled(rows.numpy(), offs.numpy())
    assert relative(found, module(rows, offs).detach()) < 1e-6
    assert not found[8:].any()


def test_other_grouped_products_are_refused() -> None:
    class Sums(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, a: Any, b: Any, offs: Any) -> Any:
            return torch.nn.functional.grouped_mm(a.bfloat16(), b.bfloat16(), offs=offs)

    from optimizer.errors import UnsupportedError

    inputs = torch.randn(16, 24), torch.randn(24, 8), torch.tensor([8, 24], dtype=torch.int32)
    with pytest.raises(UnsupportedError, match="only known for rows"):
        optimize(Sums(), "onnx", example_inputs=inputs, cache=False, progress=False)


@pytest.fixture(scope="module")
def mixtral() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=2, vocab_size=100, use_cache=False,
    )  # fmt: skip

    class Hidden(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.MixtralModel(config).eval()

        def forward(self, ids: Any) -> Any:
            return self.model(ids).last_hidden_state

    return Hidden().eval()


def test_a_mixture_of_experts_of_any_length(mixtral: Any) -> None:
    length = torch.export.Dim("length", min=2, max=64)
    compiled = optimize(
        mixtral,
        "cpu",
        example_inputs=(torch.randint(0, 100, (1, 17)),),
        dynamic_shapes={"ids": {1: length}},
        cache=False,
        progress=False,
    )
    for size in (2, 17, 40):
        ids = torch.randint(0, 100, (1, size))
        with torch.no_grad():
            assert relative(compiled(ids.numpy()), mixtral(ids)) < 1e-5


def test_weights_of_experts_are_quantized(mixtral: Any) -> None:
    ids = torch.randint(0, 100, (1, 17))
    compiled = optimize(
        mixtral, "onnx", precision="int4", example_inputs=(ids,), verify="off", cache=False, progress=False
    )
    codes = [node for node in compiled.graph.graph if node.op_type == "DequantizeLinear"]
    assert len(codes) >= 2 * 2 * 4  # two matrices of each expert in each layer
    with torch.no_grad():
        assert relative(compiled(ids.numpy()), mixtral(ids)) < 0.5
