"""Models in 8 bits as quantizers leave them: ONNX Runtime's, which writes QDQ files that all can read, and NNCF's.

Weights per channel; activations without a sign, calibrated on a few seeded inputs, the same for everyone. What is
compared is speed: the scales are as good as such a calibration makes them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from benchmarks.export import arrays, export
from models.case import ModelCase
from models.registry import load
from optimizer.frontends import load_model

__all__ = ["MODELS", "TRANSFORMERS", "Quantized", "by_nncf", "by_rows", "quantized", "variations"]

MODELS = ("resnet-50", "mobilenet-v2", "efficientnet-lite0", "bert-base", "minilm", "ppocr-rec")
TRANSFORMERS = ("bert-base", "minilm")
CALIBRATION_INPUTS = 3
_OF_TRANSFORMERS = ("MatMul", "Gemm")
"""What is quantized of a transformer: products with constants. All else it has is no faster in 8 bits."""
_CHANNELS_FROM_OPSET = 13
"""From which on a DequantizeLinear has an axis; for older files the quantizer writes one all the same."""


@dataclass(frozen=True)
class Quantized:
    """A quantized model, and what it is run with.

    Attributes:
        path: The file.
        inputs: In order.
        prepared: The same in float32, as ONNX Runtime's quantizer wants it.
        case: Of the registry.
    """

    path: Path
    inputs: list[np.ndarray]
    prepared: Path
    case: ModelCase


def quantized(name: str, folder: Path) -> Quantized:
    """A model of the registry, exported and quantized with static ranges in `folder`, by ONNX Runtime."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    case = load(name)
    inputs = arrays(case)
    whole, prepared, path = (folder / f"{name}{suffix}.onnx" for suffix in ("-whole", "-prepared", "-int8"))
    given = onnx.load(export(case, folder))
    if next(entry.version for entry in given.opset_import if entry.domain == "") < _CHANNELS_FROM_OPSET:
        given = ir.to_proto(load_model(given))
    onnx.save(given, whole)  # in one file: the preparation does not look beside it
    quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        _Reader(prepared, inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=list(_OF_TRANSFORMERS) if name in TRANSFORMERS else None,
        extra_options={"MatMulConstBOnly": True},
    )
    return Quantized(path, inputs, prepared, case)


def by_rows(model: Quantized, folder: Path) -> Path:
    """The model by ONNX Runtime's quantizer with ranges that are found while it runs, weights per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = folder / f"{model.case.name}-dynamic.onnx"
    given = onnx.load(model.prepared)
    del given.graph.value_info[:]  # the quantizer transposes weights, and then finds their old shapes here
    quantize_dynamic(given, str(path), per_channel=True, weight_type=QuantType.QInt8)
    return path


def by_nncf(model: Quantized, folder: Path) -> Path:
    """The model by NNCF, as OpenVINO's guides advise, in OpenVINO's own form."""
    for reporter in ("openvino_telemetry", "openvino_telemetry.main"):
        sys.modules[reporter] = None  # type: ignore[assignment]  # Python's way to say that it is missing.
    import nncf
    import openvino

    network = openvino.Core().read_model(model.prepared)
    network.reshape({index: list(array.shape) for index, array in enumerate(model.inputs)})
    sets = [dict(enumerate(each)) for each in variations(model.inputs)]
    is_transformer = model.case.name in TRANSFORMERS
    network = nncf.quantize(
        network,
        nncf.Dataset(sets),
        subset_size=len(sets),
        model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
    )
    path = folder / f"{model.case.name}-nncf.xml"
    openvino.save_model(network, path)
    return path


class _Reader:
    """The calibration data, as ONNX Runtime's quantizer asks for it."""

    def __init__(self, path: Path, inputs: list[np.ndarray]) -> None:
        names = [value.name for value in onnx.load(path, load_external_data=False).graph.input]
        self._feeds: Iterator[dict[str, np.ndarray]] = iter(
            [dict(zip(names, each, strict=True)) for each in variations(inputs)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next set of inputs, as ONNX Runtime's quantizer asks for it."""
        return next(self._feeds, None)


def variations(inputs: list[np.ndarray]) -> list[list[np.ndarray]]:
    """The calibration data: the example inputs, then random ones in place of floats."""
    random = np.random.default_rng(0)
    others = [
        [random.standard_normal(x.shape).astype(x.dtype) if x.dtype.kind == "f" else x for x in inputs]
        for _ in range(CALIBRATION_INPUTS - 1)
    ]
    return [inputs, *others]
