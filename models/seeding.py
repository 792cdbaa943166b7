"""Random weights that are the same everywhere and behave like trained ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers from `seed` inside the block; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def settle_batch_norms(module: nn.Module, inputs: torch.Tensor) -> None:
    """Give every batch normalization random scales and shifts, and the statistics of its own activations.

    Fresh ones (mean 0, variance 1, scale 1, shift 0) would let a wrong folding pass unseen, and statistics that have
    nothing to do with the activations would make a deep network overflow or die out.

    Args:
        module: Changed in place, and left in evaluation mode.
        inputs: `[B, C, H, W] float32`, a few random images.
    """
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.2)
        norm.momentum = 1.0
    module.train()
    with torch.no_grad():
        module(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
