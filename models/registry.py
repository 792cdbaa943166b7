"""The models by name; a family's file is imported when one of its models is asked for."""

from __future__ import annotations

import importlib

from models.case import ModelCase

_BUILDERS = {
    "bert-base": ("bert", "base"),
    "bert-base-512": ("bert", "base_512"),
    "densenet-121": ("light", "densenet121"),
    "efficientnet-lite0": ("efficientnet_lite", "lite0"),
    "gpt2": ("gpt2", "small"),
    "inception-v2": ("light", "inception_v2"),
    "minilm": ("minilm", "case"),
    "minilm-32": ("minilm", "batch_32"),
    "mobilenet-v2": ("mobilenet", "v2"),
    "ppocr-cls": ("ppocr", "classification"),
    "ppocr-det": ("ppocr", "detection"),
    "ppocr-rec": ("ppocr", "recognition"),
    "resnet-50": ("resnet", "resnet50"),
    "resnet-50-b8": ("resnet", "resnet50_batch_8"),
    "unet-1024": ("unet", "base"),
    "vit-1024": ("vit", "base16_1024"),
    "vit-b16": ("vit", "base16"),
    "whisper-base-encoder": ("whisper", "base_encoder"),
    "whisper-tiny-encoder": ("whisper", "tiny_encoder"),
}
"""Name -> the file of its family, and the function in it."""


def names() -> tuple[str, ...]:
    """The names that `load` accepts."""
    return tuple(_BUILDERS)


def load(name: str) -> ModelCase:
    """Build a model; nothing is downloaded.

    Raises:
        KeyError: The name is unknown.
        MissingWeights: The package with the model's weights is not installed.
    """
    if name not in _BUILDERS:
        raise KeyError(f"no model is called {name!r}; there are {', '.join(_BUILDERS)}")
    module, function = _BUILDERS[name]
    case: ModelCase = getattr(importlib.import_module(f"models.{module}"), function)()
    return case
