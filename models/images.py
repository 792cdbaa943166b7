"""What the image classifiers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig

from models.case import ModelCase
from models.seeding import seeded, settle_batch_norms

Config = TypeVar("Config", bound=PreTrainedConfig)


class Classifier(nn.Module):
    """A classifier of transformers that returns its logits alone: `[B, 3, H, W]` to `[B, classes]` float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The classes' logits."""
        logits: torch.Tensor = self.network(pixel_values=pixel_values).logits
        return logits


def image(batch: int = 1, size: int = 224, seed: int = 0) -> torch.Tensor:
    """Standard normal noise, `[B, 3, size, size] float32`."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def with_classes(config: Config, classes: int = 1000) -> Config:
    """The same configuration with as many classes as ImageNet has."""
    config.num_labels = classes
    return config


def convolutional(
    network: Callable[[Config], nn.Module], config: Config, name: str, size: int, seed: int, batch: int = 1
) -> ModelCase:
    """A classifier with batch normalizations, random weights, and images `[batch, 3, size, size] float32`."""
    with seeded(seed):
        module = Classifier(network(config))
        settle_batch_norms(module, image(4, size, seed))
    return ModelCase(name, module, (image(batch, size),))
