"""MobileNetV2 (Sandler et al. 2018), random weights."""

from __future__ import annotations

from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from models.case import ModelCase
from models.images import convolutional, with_classes


def build(config: MobileNetV2Config, name: str, size: int = 224, seed: int = 0) -> ModelCase:
    """A classifier of any width."""
    return convolutional(MobileNetV2ForImageClassification, config, name, size, seed)


def v2() -> ModelCase:
    """MobileNetV2 of width one: 3.5 million parameters, one image of 224."""
    return build(with_classes(MobileNetV2Config()), "mobilenet-v2")
