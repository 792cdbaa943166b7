"""Every form of PyTorch's attention is exported, and gives what PyTorch gives."""

from __future__ import annotations

from typing import Any

import pytest

from optimizer import optimize

torch = pytest.importorskip("torch")


class Attention(torch.nn.Module):  # type: ignore[misc, name-defined]
    """The function as a module."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Any, k: Any, v: Any, m: Any = None) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=m, **self.options)


def error(shapes: list[tuple[int, ...]], options: dict[str, Any], dynamic: Any = None, mask: Any = None) -> float:
    """Of the exported graph, run by ONNX Runtime, relative to PyTorch."""
    torch.manual_seed(0)
    module, inputs = Attention(options), [torch.randn(shape) for shape in shapes]
    if mask is not None:
        inputs.append(mask)
    compiled = optimize(
        module,
        "onnx",
        example_inputs=tuple(inputs),
        dynamic_shapes=dynamic,
        verify="off",
        cache=False,
        progress=False,
    )
    (expected,) = [module(*inputs)]
    found = torch.from_numpy(compiled(*[each.numpy() for each in inputs]))
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def three(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...] | None = None) -> list[tuple[int, ...]]:
    return [query, key, key if value is None else value]


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        (three((7, 16), (9, 16)), {}),
        (three((2, 7, 16), (9, 16)), {}),
        (three((2, 7, 16), (2, 9, 16), (2, 9, 24)), {"scale": 0.3}),
        (three((2, 9, 16), (2, 9, 16)), {"is_causal": True, "dropout_p": 0.0}),
        (three((4, 7, 16), (2, 9, 16)), {"enable_gqa": True}),
        (three((2, 4, 9, 16), (2, 1, 9, 16)), {"is_causal": True}),
        (three((2, 4, 7, 16), (2, 4, 9, 16)), {"enable_gqa": True}),
        (three((2, 4, 7, 16), (1, 4, 9, 16)), {}),
        (three((2, 4, 7, 16), (2, 4, 9, 16), (2, 1, 9, 16)), {}),
        (three((2, 1, 7, 16), (2, 4, 9, 16)), {}),
        (three((2, 3, 2, 7, 16), (2, 3, 2, 9, 16)), {}),
        (three((2, 3, 2, 7, 16), (1, 3, 1, 9, 16), (2, 1, 1, 9, 16)), {}),
    ],
)
def test_shapes(shapes: list[tuple[int, ...]], options: dict[str, Any]) -> None:
    assert error(shapes, options) < 1e-5


@pytest.mark.parametrize(
    ("leading", "mask"),
    [
        ((2,), (2, 7, 9)),
        ((2,), (9,)),
        ((2, 4), (2, 1, 1, 9)),
        ((2, 3, 4), (4, 7, 9)),
        ((2, 3, 4), (3, 1, 7, 9)),
        ((2, 3, 4), (2, 3, 1, 7, 9)),
        ((2, 4), (7, 1)),
        ((2,), (1, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["float", "bool"])
def test_masks(leading: tuple[int, ...], mask: tuple[int, ...], kind: str) -> None:
    values = torch.randn(mask, generator=torch.Generator().manual_seed(1))
    if kind == "bool":
        values = (values > 0) | (torch.arange(mask[-1]) == 0)  # no row is without a key
    assert error(three((*leading, 7, 16), (*leading, 9, 16)), {}, mask=values) < 1e-5


@pytest.mark.parametrize("leading", [(2,), (2, 4), (2, 3, 4)])
def test_symbolic_sizes(leading: tuple[int, ...]) -> None:
    rows = len(leading)
    axes = {0: torch.export.Dim("batch"), rows: torch.export.Dim("keys")}
    dynamic = {"q": {0: axes[0], rows: torch.export.Dim("rows")}, "k": axes, "v": axes}
    assert error(three((*leading, 7, 16), (*leading, 9, 16)), {}, dynamic) < 1e-5


def test_one_batch_of_keys_for_a_symbolic_number_of_batches() -> None:
    dynamic = {"q": {0: torch.export.Dim("batch")}, "k": None, "v": None}
    assert error(three((3, 4, 7, 16), (1, 4, 9, 16)), {}, dynamic) < 1e-5


def test_a_model_with_one_head_of_keys_for_all() -> None:
    """Falcon's: PyTorch's attention broadcasts the keys, which its exporter refuses."""
    transformers = pytest.importorskip("transformers")
    config = transformers.FalconConfig(vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    config.use_cache = False
    torch.manual_seed(0)
    model = transformers.FalconModel(config).eval()
    tokens = torch.randint(0, 99, (2, 12))
    compiled = optimize(model, "cpu", example_inputs={"input_ids": tokens}, cache=False, progress=False)
    with torch.no_grad():
        expected = model(tokens).last_hidden_state
    found = torch.from_numpy(compiled(tokens.numpy()))
    assert float((found - expected).norm() / expected.norm()) < 1e-5
