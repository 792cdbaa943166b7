"""MobileNetV2 (Sandler et al. 2018), random weights."""

from __future__ import annotations

from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from models.case import ModelCase
from models.images import Classifier, image, with_classes
from models.seeding import seeded, settle_batch_norms


def build(config: MobileNetV2Config, name: str, size: int = 224, seed: int = 0) -> ModelCase:
    """A classifier of any width."""
    with seeded(seed):
        module = Classifier(MobileNetV2ForImageClassification(config))
        settle_batch_norms(module, image(4, size, seed))
    return ModelCase(name, module, (image(size=size),))


def v2() -> ModelCase:
    """MobileNetV2 of width one: 3.5 million parameters, one image of 224."""
    return build(with_classes(MobileNetV2Config()), "mobilenet-v2")
