"""The models by name."""

from __future__ import annotations

from collections.abc import Callable

from models import bert, efficientnet_lite, gpt2, minilm, mobilenet, ppocr, resnet, vit, whisper
from models.case import ModelCase

_BUILDERS: dict[str, Callable[[], ModelCase]] = {
    "bert-base": bert.base,
    "efficientnet-lite0": efficientnet_lite.lite0,
    "gpt2": gpt2.small,
    "minilm": minilm.case,
    "mobilenet-v2": mobilenet.v2,
    "ppocr-cls": ppocr.classification,
    "ppocr-det": ppocr.detection,
    "ppocr-rec": ppocr.recognition,
    "resnet-50": resnet.resnet50,
    "vit-b16": vit.base16,
    "whisper-tiny-encoder": whisper.tiny_encoder,
}


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
    return _BUILDERS[name]()
