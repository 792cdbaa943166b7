"""Models as ONNX Runtime's own quantizer leaves them: the same QDQ graph for everyone.

Static, 8 bits, weights per channel; activations without a sign, calibrated on a few seeded inputs. What is compared is
speed: the scales are as good as such a calibration makes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from benchmarks.export import arrays, export
from models.registry import load
from optimizer.frontends import load_model

__all__ = ["MODELS", "Quantized", "quantized"]

MODELS = ("resnet-50", "mobilenet-v2", "efficientnet-lite0", "bert-base", "minilm", "ppocr-rec")
CALIBRATION_INPUTS = 3
_OF_TRANSFORMERS = ("MatMul", "Gemm")
"""What is quantized of a transformer: products with constants. All else it has is no faster in 8 bits."""
_TRANSFORMERS = ("bert-base", "minilm")
_CHANNELS_FROM_OPSET = 13
"""From which on a DequantizeLinear has an axis; for older files the quantizer writes one all the same."""


@dataclass(frozen=True)
class Quantized:
    """A quantized model, and what it is run with."""

    path: Path
    inputs: list[np.ndarray]


def quantized(name: str, folder: Path) -> Quantized:
    """A model of the registry, exported and quantized in `folder`."""
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
    transformer = name in _TRANSFORMERS
    quantize_static(
        str(prepared),
        str(path),
        _Reader(prepared, inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=list(_OF_TRANSFORMERS) if transformer else None,
        extra_options={"MatMulConstBOnly": True},
    )
    return Quantized(path, inputs)


class _Reader:
    """The calibration data: the example inputs, then random ones in place of floats."""

    def __init__(self, path: Path, inputs: list[np.ndarray]) -> None:
        names = [value.name for value in onnx.load(path, load_external_data=False).graph.input]
        self._feeds: Iterator[dict[str, np.ndarray]] = iter(
            [dict(zip(names, each, strict=True)) for each in _variations(inputs)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next set of inputs, as ONNX Runtime's quantizer asks for it."""
        return next(self._feeds, None)


def _variations(inputs: list[np.ndarray]) -> list[list[np.ndarray]]:
    random = np.random.default_rng(0)
    others = [
        [random.standard_normal(x.shape).astype(x.dtype) if x.dtype.kind == "f" else x for x in inputs]
        for _ in range(CALIBRATION_INPUTS - 1)
    ]
    return [inputs, *others]
