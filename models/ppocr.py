"""PP-OCRv4 (Du et al. 2020 and its successors): pretrained ONNX files of the package rapidocr-onnxruntime."""

from __future__ import annotations

import pydoc_data.topics

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from models.case import ModelCase, package_file

DISTRIBUTION = "rapidocr-onnxruntime"


def _case(name: str, file: str, image: npt.NDArray[np.float32]) -> ModelCase:
    """A case with one input `x`, `[1, 3, height, width]` between -1 and 1, as the package scales images."""
    path = package_file(DISTRIBUTION, f"rapidocr_onnxruntime/models/{file}")
    return ModelCase(name, path, {"x": image}, pretrained=True)


def _noise(height: int, width: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (1, 3, height, width)).astype(np.float32)


def page(side: int) -> npt.NDArray[np.float32]:
    """A noisy square page of Python's manual, `[1, 3, side, side]` between -1 and 1."""
    lines = [line.strip() for line in pydoc_data.topics.topics["assert"].splitlines() if line.strip()]
    picture = Image.new("RGB", (side, side), "white")
    font = ImageFont.load_default(side / 40)
    ImageDraw.Draw(picture).multiline_text((side // 32, side // 32), "\n".join(lines), "black", font, spacing=side / 80)
    pixels = np.asarray(picture, np.float32) + np.random.default_rng(0).normal(0, 8, (side, side, 3))
    scaled: npt.NDArray[np.float32] = (np.clip(pixels, 0, 255) / 127.5 - 1).astype(np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def detection() -> ModelCase:
    """Where the text is: one page of 640 by 640. Where there is none, the answer is zero but for rounding."""
    return _case("ppocr-det", "ch_PP-OCRv4_det_infer.onnx", page(640))


def recognition() -> ModelCase:
    """What the text says: one line of 48 by 320 pixels."""
    return _case("ppocr-rec", "ch_PP-OCRv4_rec_infer.onnx", _noise(48, 320))


def classification() -> ModelCase:
    """Whether the text is upside down: one line of 48 by 192 pixels."""
    return _case("ppocr-cls", "ch_ppocr_mobile_v2.0_cls_infer.onnx", _noise(48, 192))
