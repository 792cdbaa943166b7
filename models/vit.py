"""The vision transformer (Dosovitskiy et al. 2020), random weights."""

from __future__ import annotations

from transformers import ViTConfig, ViTForImageClassification

from models.case import ModelCase
from models.images import Classifier, image, with_classes
from models.seeding import seeded


def build(config: ViTConfig, name: str, size: int = 224, seed: int = 0) -> ModelCase:
    """A classifier of any size."""
    with seeded(seed):
        module = Classifier(ViTForImageClassification(config)).eval()
    return ModelCase(name, module, (image(size=size),))


def base16() -> ModelCase:
    """ViT-B/16: 12 layers of 768, patches of 16, 86 million parameters, one image of 224."""
    return build(with_classes(ViTConfig()), "vit-b16")


def base16_1024() -> ModelCase:
    """The same for one image of 1024: 4,097 tokens."""
    return build(with_classes(ViTConfig(image_size=1024)), "vit-1024", 1024)
