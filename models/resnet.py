"""ResNet (He et al. 2015; stride in the 3x3 convolution), random weights."""

from __future__ import annotations

from transformers import ResNetConfig, ResNetForImageClassification

from models.case import ModelCase
from models.images import convolutional, with_classes


def build(config: ResNetConfig, name: str, size: int = 224, seed: int = 0, batch: int = 1) -> ModelCase:
    """A classifier of any size."""
    return convolutional(ResNetForImageClassification, config, name, size, seed, batch)


def resnet50() -> ModelCase:
    """ResNet-50: 26 million parameters, one image of 224."""
    return build(with_classes(ResNetConfig()), "resnet-50")


def resnet50_batch_8() -> ModelCase:
    """ResNet-50 at eight images of 224."""
    return build(with_classes(ResNetConfig()), "resnet-50-b8", batch=8)
