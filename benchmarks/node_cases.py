"""Models of which the nodes are counted: of real depth, and narrow, since the nodes do not depend on the width."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.case import ModelCase

if TYPE_CHECKING:
    import torch

OPSETS = (18, 20, 23)
ATTENTION = ("eager", "sdpa")
WIDTH, VOCABULARY = 96, 1000


@dataclass(frozen=True)
class NodeCase:
    """One exported file.

    Attributes:
        model: Its name.
        opset: What it is exported at.
        attention: `"eager"`, `"sdpa"`, or `""` where there is no choice.
        path: The file.
        inputs: What it can be run with, in order.
        attentions: How many attentions the model has.
    """

    model: str
    opset: int
    attention: str
    path: Path
    inputs: list[np.ndarray]
    attentions: int


@dataclass(frozen=True)
class Builder:
    """How a model is built.

    Attributes:
        build: Gives it for a kind of attention.
        attentions: How many it has.
        kinds: The kinds of attention that it knows.
    """

    build: Callable[[str], ModelCase]
    attentions: int
    kinds: tuple[str, ...] = ATTENTION


def _config(kind: type[Any], attention: str, **options: object) -> Any:
    """A configuration of transformers, narrow, with one kind of attention."""
    narrow = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
    return kind(**{**narrow, **options, "attn_implementation": attention})


def builders() -> dict[str, Builder]:
    """The models by name."""
    import transformers as library

    from models import bert, gpt2, llama, minilm, transformer, vit, whisper

    def audio(attention: str) -> library.WhisperConfig:
        sizes = {"encoder_ffn_dim": 4 * WIDTH, "decoder_ffn_dim": 4 * WIDTH, "max_source_positions": 100}
        heads = {"encoder_attention_heads": 6, "decoder_attention_heads": 6}
        layers = {"encoder_layers": 4, "decoder_layers": 4}
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        config: library.WhisperConfig = _config(
            library.WhisperConfig, attention, d_model=WIDTH, **layers, **sizes, **heads, **tokens
        )
        return config

    def image(attention: str) -> ModelCase:
        return vit.build(_config(library.ViTConfig, attention, image_size=64), "ViT", size=64)

    def grouped(attention: str) -> ModelCase:
        heads = {"num_hidden_layers": 16, "num_attention_heads": 12, "num_key_value_heads": 4}
        return llama.build(_config(library.LlamaConfig, attention, **heads), "Llama")

    def partial(attention: str) -> ModelCase:
        heads = {"num_hidden_layers": 24, "num_attention_heads": 6}
        return llama.build_phi(_config(library.PhiConfig, attention, **heads), "Phi")

    return {
        "BERT": Builder(lambda kind: bert.build(_config(library.BertConfig, kind), "BERT"), 12),
        "ViT": Builder(image, 12),
        "GPT-2": Builder(lambda kind: gpt2.build(_config(library.GPT2Config, kind), "GPT-2"), 12),
        "Llama": Builder(grouped, 16),
        "Phi": Builder(partial, 24),
        "MiniLM": Builder(lambda _: minilm.case(), 6, ("",)),
        "Whisper encoder": Builder(lambda kind: whisper.build(audio(kind), "Whisper encoder"), 4),
        "Whisper decoder": Builder(lambda kind: whisper.build_decoder(audio(kind), "Whisper decoder"), 8),
        "TransformerEncoder": Builder(lambda _: transformer.build_encoder(6, WIDTH, 8, "encoder"), 6, ("",)),
        "TransformerDecoder": Builder(lambda _: transformer.build_decoder(6, WIDTH, 8, "decoder"), 12, ("",)),
    }


def exported(name: str, folder: Path) -> list[NodeCase]:
    """One model, exported by PyTorch at every opset and with every kind of attention."""
    import torch

    from benchmarks.export import arrays

    builder = builders()[name]
    cases = []
    for kind in builder.kinds:
        case = builder.build(kind)
        assert isinstance(case.model, torch.nn.Module)
        _with_biases(case.model)
        for opset in OPSETS:
            path = folder / f"{name}-{kind}-{opset}.onnx".replace(" ", "-")
            with warnings.catch_warnings(action="ignore"):
                logging.disable(logging.WARNING)
                try:
                    program = torch.onnx.export(
                        case.model, tuple(case.example_inputs), dynamo=True, opset_version=opset, verbose=False
                    )
                finally:
                    logging.disable(logging.NOTSET)
            assert program is not None
            program.save(path)
            cases.append(NodeCase(name, opset, kind, path, arrays(case), builder.attentions))
    return cases


def _with_biases(module: torch.nn.Module) -> None:
    """Draw the parameters that are 0 before training: adding them would fall away, as it does in no trained model."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in module.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, 0.0, 0.02)


def light_models() -> list[NodeCase]:
    """The networks whose weights the onnx package leaves out, and PP-OCRv4 with its own."""
    import onnx

    from models import load

    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    cases = [NodeCase(path.stem, 0, "", path, [], 0) for path in sorted(folder.glob("light_*.onnx"))]
    for name in ("ppocr-det", "ppocr-rec", "ppocr-cls"):
        case = load(name)
        assert isinstance(case.model, Path)
        assert isinstance(case.example_inputs, dict)
        cases.append(NodeCase(name, 0, "", case.model, list(case.example_inputs.values()), 0))
    return cases
