"""The estimate of a kernel's time: by the rule that takes it, and never below what the device's peaks allow."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from backends.gpu.forecast import forecast
from backends.gpu.tile_model import Estimate
from backends.relax.kernel import decode, inline
from optimizer.gpus import GPUS
from tests.backends.running import conv_relu, parse
from tests.gpu.rules import fused
from tests.gpu.test_rule_attention import model as attend

pytestmark = pytest.mark.without_device


def normal_weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def estimated(name: str, gpu: str = "sm_80") -> Estimate:
    kernel = decode(fused(MODELS[name]).one("" if name == "other" else name))
    assert kernel is not None
    return forecast(inline(kernel), GPUS[gpu])


MODELS: dict[str, onnx.ModelProto] = {
    "matmul": parse("g (float[128,768] a) => (float[128,3072] y) { y = MatMul(a, b) }", normal_weights(b=(768, 3072))),
    "conv2d": parse(conv_relu("float", "1,64,56,56", 1, [1] * 4), normal_weights(w=(64, 64, 3, 3), b=(64,))),
    "attention": attend(12, 12, 64, sizes=(512, 512)),
    "other": parse("g (float[4096,1024] x) => (float[4096,1024] y) { y = Softmax(x) }"),
}
FLOPS = {"matmul": 2 * 128 * 768 * 3072, "conv2d": 2 * 56 * 56 * 64 * 576}


@pytest.mark.parametrize("gpu", ["sm_80", "sm_86", "sm_89", "sm_90"])
@pytest.mark.parametrize("name", MODELS)
def test_no_kernel_is_faster_than_the_device(name: str, gpu: str) -> None:
    found, device = estimated(name, gpu), GPUS[gpu]
    assert found.seconds > device.launch_seconds
    assert found.seconds > found.flops / device.flops["float32"]
    assert found.seconds > found.traffic_bytes / device.memory_bytes_a_second
    assert found.traffic_bytes <= 1.3 * found.least_bytes


@pytest.mark.parametrize("name", FLOPS)
def test_operations_are_counted(name: str) -> None:
    assert estimated(name).flops == FLOPS[name]


def test_what_is_no_heavy_operator_is_bound_by_memory() -> None:
    found = estimated("other")
    assert found.bound == "memory"
    assert found.traffic_bytes == 2 * 4096 * 1024 * 4
