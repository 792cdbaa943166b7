"""The encoder and the decoder of Whisper (Radford et al. 2022), random weights."""

from __future__ import annotations

import torch
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from models.bert import tokens
from models.case import ModelCase
from models.seeding import seeded


class AudioEncoder(nn.Module):
    """A log-mel spectrogram `[B, M, 2S] float32` to hidden states `[B, S, D] float32`."""

    def __init__(self, encoder: WhisperEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """The last layer's hidden states."""
        hidden: torch.Tensor = self.encoder(input_features).last_hidden_state
        return hidden


class TextDecoder(nn.Module):
    """Token ids `[B, S] int64` and the encoder's hidden states `[B, T, D] float32` to hidden states `[B, S, D]`."""

    def __init__(self, decoder: WhisperDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """The last layer's hidden states."""
        result = self.decoder(input_ids=input_ids, encoder_hidden_states=encoder_hidden_states, use_cache=False)
        hidden: torch.Tensor = result.last_hidden_state
        return hidden


def build_decoder(config: WhisperConfig, name: str, length: int = 64, seed: int = 0) -> ModelCase:
    """A decoder of any size."""
    with seeded(seed):
        module = TextDecoder(WhisperDecoder(config)).eval()
        hidden = torch.randn(1, config.max_source_positions, config.d_model)
    return ModelCase(name, module, (tokens(1, length, config.vocab_size)[0], hidden))


def build(config: WhisperConfig, name: str, seed: int = 0) -> ModelCase:
    """An encoder of any size."""
    with seeded(seed):
        module = AudioEncoder(WhisperEncoder(config)).eval()
        features = torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions)
    return ModelCase(name, module, (features,))


def tiny_encoder() -> ModelCase:
    """The encoder of Whisper tiny: 4 layers of 384, 30 seconds of sound."""
    return build(
        WhisperConfig(encoder_layers=4, d_model=384, encoder_attention_heads=6, encoder_ffn_dim=1536),
        "whisper-tiny-encoder",
    )


def base_encoder() -> ModelCase:
    """The encoder of Whisper base: 6 layers of 512, 30 seconds of sound."""
    return build(
        WhisperConfig(encoder_layers=6, d_model=512, encoder_attention_heads=8, encoder_ffn_dim=2048),
        "whisper-base-encoder",
    )
