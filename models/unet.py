"""The U-Net (Ronneberger et al. 2015) with padded convolutions, random weights: an image in, a map of classes out."""

from __future__ import annotations

import torch
from torch import nn

from models.case import ModelCase
from models.images import image
from models.seeding import seeded


class Twice(nn.Sequential):
    """Two 3 x 3 convolutions: `[B, in, H, W]` to `[B, out, H, W]`."""

    def __init__(self, channels: int, out: int) -> None:
        first, second = (nn.Conv2d(c, out, 3, padding=1) for c in (channels, out))
        super().__init__(first, nn.ReLU(), second, nn.ReLU())


class UNet(nn.Module):
    """Down by pooling and up by transposed convolutions, with a skip connection at each level.

    Args:
        width: Channels of the first level; each level further down has twice as many.
        levels: How many there are.
        classes: Channels of the result.
    """

    def __init__(self, width: int, levels: int, classes: int) -> None:
        super().__init__()
        widths = [width << level for level in range(levels)]
        self.down = nn.ModuleList(Twice(c, out) for c, out in zip([3, *widths], widths, strict=False))
        pairs = list(zip(reversed(widths), widths[-2::-1], strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(c, out, 2, stride=2) for c, out in pairs)
        self.join = nn.ModuleList(Twice(c, out) for c, out in pairs)
        self.out = nn.Conv2d(width, classes, 1)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]` to `[B, classes, H, W]`, both float32."""
        skips: list[torch.Tensor] = []
        for level, down in enumerate(self.down):
            pixels = down(nn.functional.max_pool2d(pixels, 2) if level else pixels)
            skips.append(pixels)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            pixels = join(torch.cat([skips.pop(), up(pixels)], 1))
        result: torch.Tensor = self.out(pixels)
        return result


def build(width: int, levels: int, size: int, name: str, seed: int = 0) -> ModelCase:
    """A network of any size."""
    with seeded(seed):
        module = UNet(width, levels, 2).eval()
    return ModelCase(name, module, (image(size=size),))


def base() -> ModelCase:
    """Five levels, 32 channels in the first: 7.8 million parameters, one image of 1024."""
    return build(32, 5, 1024, "unet-1024")
