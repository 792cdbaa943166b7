"""Modules that are traced once for their export compute what PyTorch says, and the others are traced again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F

from optimizer.frontends import load_model
from optimizer.frontends.one_trace import exported_once
from optimizer.ort_session import OrtSession

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(torch.nn.Module):
    """A module of convolutional networks: everything that is rewritten, and what stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(4, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.second = torch.nn.Conv2d(8, 8, 1)
        self.linear = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu_(self.norm(self.first(x)))
        hidden = self.second(hidden).add_(hidden)
        hidden = F.dropout(F.adaptive_avg_pool2d(hidden, 1).flatten(1).to(torch.float32), 0.5, self.training)
        kept = (hidden > 0).__and__(hidden < 1).to(torch.float32)
        return torch.sigmoid(
            self.linear(F.dropout(hidden, 0.5, self.training, inplace=True)) + kept.sum(1, keepdim=True)
        )


class Of(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)  # type: ignore[operator, no-any-return]


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The programs that PyTorch traced again."""
    seen: list[str] = []
    real: Any = torch.export.ExportedProgram.run_decompositions

    def run_decompositions(self: torch.export.ExportedProgram, *args: Any) -> torch.export.ExportedProgram:
        seen.append(str(self.graph))
        return real(self, *args)  # type: ignore[no-any-return]

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", run_decompositions)
    yield seen


def check(module: torch.nn.Module) -> ir.Model:
    """The exported model, which has to compute what the module does."""
    torch.manual_seed(1)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    loaded = load_model(module, example_inputs=X)
    with torch.no_grad():
        expected = module.eval()(X.clone()).numpy()
    found = OrtSession(ir.to_proto(loaded).SerializeToString()).run([X.numpy()])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    return loaded


def test_a_convolutional_network_is_traced_once(traces: list[str]) -> None:
    loaded = check(Net())
    assert not traces
    operators = {node.op_type for node in loaded.graph}
    assert "BatchNormalization" in operators
    assert "Dropout" not in operators


def test_a_transformer_layer_is_traced_once(traces: list[str]) -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        loaded = load_model(layer, example_inputs=tokens)
        with torch.no_grad():
            expected = layer.eval()(tokens).numpy()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    found = OrtSession(ir.to_proto(loaded).SerializeToString()).run([tokens.numpy()])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: torch.celu(F.pixel_shuffle(x, 2)).diff(),  # composed of others
        lambda _, x: (y := torch.relu(x)).neg() * y.add_(1.0),  # others read what is changed in place
        lambda _, x: (y := x * 2.0).transpose(1, 2).mul_(3.0).sum() + y,  # a view is changed
        lambda _, x: (x * 2.0).to(torch.float32, copy=True).add_(1.0) + x,  # a copy is made and changed
        lambda _, x: torch.relu(x).gt_(0.5) * x,  # the comparison would give another type
        lambda _, x: F.adaptive_avg_pool2d(x, 2) * 1.0,  # to more than one pixel
        lambda self, x: self.norm(x),  # what is rewritten is an output
        lambda _, x: F.batch_norm(x, None, None, training=True) * 1.0,  # by the statistics of the batch
    ],
    ids=["composed", "read", "view", "copy", "comparison", "pixels", "output", "batch"],
)
def test_what_is_not_plain_is_traced_again(function: object, traces: list[str]) -> None:
    check(Of(function))
    assert traces


def test_dynamic_sizes_are_traced_again(traces: list[str]) -> None:
    load_model(Net(), example_inputs=X, dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    assert traces


def test_a_view_that_is_changed_later_counts_as_changed(traces: list[str]) -> None:
    """`dropout` at inference gives its input, so what is behind it may not be overwritten."""
    check(Of(lambda _, x: F.dropout(y := torch.relu(x), 0.5, False).add_(1.0) + y))
    assert traces


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of what PyTorch uses itself
def test_the_table_of_the_exporter_decides() -> None:
    program = exported_once(Net().eval(), (X,), {})
    assert program.run_decompositions({}) is program
    assert (
        program.run_decompositions({torch.ops.aten.sigmoid.default: lambda x: 1 / (1 + torch.exp(-x))}) is not program
    )
