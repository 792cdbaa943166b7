"""ResNet (He et al. 2015; stride in the 3x3 convolution), random weights."""

from __future__ import annotations

from transformers import ResNetConfig, ResNetForImageClassification

from models.case import ModelCase
from models.images import Classifier, image, with_classes
from models.seeding import seeded, settle_batch_norms


def build(config: ResNetConfig, name: str, size: int = 224, seed: int = 0) -> ModelCase:
    """A classifier of any size."""
    with seeded(seed):
        module = Classifier(ResNetForImageClassification(config))
        settle_batch_norms(module, image(4, size, seed))
    return ModelCase(name, module, (image(size=size),))


def resnet50() -> ModelCase:
    """ResNet-50: 26 million parameters, one image of 224."""
    return build(with_classes(ResNetConfig()), "resnet-50")
