"""PP-OCRv4 (Du et al. 2020 and its successors): pretrained ONNX files of the package rapidocr-onnxruntime."""

from __future__ import annotations

import numpy as np

from models.case import ModelCase, package_file

DISTRIBUTION = "rapidocr-onnxruntime"


def _case(name: str, file: str, shape: tuple[int, int, int, int]) -> ModelCase:
    """A case with one noisy input `x` between -1 and 1, as the package's own preprocessing scales images."""
    path = package_file(DISTRIBUTION, f"rapidocr_onnxruntime/models/{file}")
    inputs = {"x": np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)}
    return ModelCase(name, path, inputs, pretrained=True)


def detection() -> ModelCase:
    """Where the text is: one image of 640 by 640."""
    return _case("ppocr-det", "ch_PP-OCRv4_det_infer.onnx", (1, 3, 640, 640))


def recognition() -> ModelCase:
    """What the text says: one line of 48 by 320 pixels."""
    return _case("ppocr-rec", "ch_PP-OCRv4_rec_infer.onnx", (1, 3, 48, 320))


def classification() -> ModelCase:
    """Whether the text is upside down: one line of 48 by 192 pixels."""
    return _case("ppocr-cls", "ch_ppocr_mobile_v2.0_cls_infer.onnx", (1, 3, 48, 192))
