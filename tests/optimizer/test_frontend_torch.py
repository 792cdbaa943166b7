"""PyTorch modules and exported programs: exported quietly, weights shared, the module as it was."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
import torch

from optimizer.errors import InputError, UnsupportedError
from optimizer.frontends import load_model


class Net(torch.nn.Module):
    """A module with a dropout, a normalization, a branch on a python value and outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 4)
        self.dropout = torch.nn.Dropout(0.5)
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        hidden = self.linear(x) * scale
        return {"y": self.norm(self.dropout(hidden)), "hidden": hidden}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


X = torch.arange(24, dtype=torch.float32).reshape(3, 8) / 24


def test_a_module_is_exported_with_its_own_weights_as_it_was(
    net: Net, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    net.dropout.eval()
    modes = [module.training for module in net.modules()]
    level = logging.getLogger("torch.onnx").level
    loaded = load_model(net, example_inputs=X)
    assert [module.training for module in net.modules()] == modes
    assert logging.getLogger("torch.onnx").level == level
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    tensor = loaded.graph.initializers["linear.weight"].const_value
    assert tensor is not None
    assert tensor.numpy().ctypes.data == net.linear.weight.data_ptr()
    assert type(tensor) is ir.Tensor
    assert "Dropout" not in {node.op_type for node in loaded.graph}


def test_nothing_of_the_exporting_machine_is_kept(net: Net) -> None:
    loaded = load_model(net, example_inputs=X)
    kept = {key for node in loaded.graph for key in node.metadata_props}
    assert kept <= {"namespace"}
    assert "test_frontend_torch.py" not in str(ir.to_proto(loaded))


def test_dynamic_shapes_are_kept(net: Net) -> None:
    batch = torch.export.Dim("batch", max=64)
    loaded = load_model(net, example_inputs=(X,), dynamic_shapes={"x": {0: batch}})
    assert loaded.graph.inputs[0].shape == ir.Shape(["batch", 8])


@pytest.mark.parametrize("inputs", [{"x": X}, [X.numpy(), 2.0]], ids=["dict", "list"])
def test_example_inputs_come_in_many_forms(net: Net, inputs: object) -> None:
    assert [value.name for value in load_model(net, example_inputs=inputs).graph.inputs] == ["x"]


def test_an_exported_program_needs_no_example_inputs(net: Net) -> None:
    program = torch.export.export(net.eval(), (X,))
    loaded = load_model(program)
    assert [tuple(value.shape or ()) for value in loaded.graph.inputs] == [(3, 8)]
    with pytest.raises(InputError, match="dynamic_shapes is fixed when a program is exported"):
        load_model(program, dynamic_shapes={"x": None})


def test_what_is_missing_or_does_not_apply_is_named(net: Net) -> None:
    with pytest.raises(InputError, match=r"a torch\.nn\.Module needs example_inputs"):
        load_model(net)
    with pytest.raises(InputError, match="dynamic_shapes applies to PyTorch models only"):
        load_model("model.onnx", dynamic_shapes={})


def test_what_cannot_be_exported_is_refused_in_one_line() -> None:
    class Unexportable(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(np.sort(x.numpy()))

    module = Unexportable()
    with pytest.raises(UnsupportedError, match=r"PyTorch cannot export this model to ONNX: .+") as caught:
        load_model(module, example_inputs=X)
    assert "\n" not in str(caught.value)
    assert module.training


def test_torch_is_not_imported_for_an_onnx_model() -> None:
    code = """
import sys
from optimizer.frontends import load_model
from tests.optimizer.build import perceptron
load_model(perceptron())
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
