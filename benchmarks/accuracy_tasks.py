"""What quantized models are asked: to find paragraphs, to read lines, to name pictures. No data is from the network.

What calibrates is never what is measured: other topics of the manual, other lines, other pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image, ImageDraw, ImageFont

from models import minilm, ppocr
from models.case import ModelCase, package_file
from models.registry import load

__all__ = ["TASKS", "Task", "edits", "lines", "paragraphs", "pictures", "reciprocal_ranks"]

Array = npt.NDArray[Any]
Run = Callable[..., Any]

_BATCH = 32
_CALIBRATING = 8
"""Batches of paragraphs, or crops of each picture."""
_LINES = 256
_LINE = (48, 320)
"""Height and width of what the recognizer reads."""
_CROPS = 16
_CROP = 224


@dataclass(frozen=True)
class Task:
    """A model, data to calibrate with, and a score.

    Attributes:
        title: What is done.
        score: What is counted.
        unit: What a number is shown as: `""` or `"%"`.
        limit: By how much int8 may be worse than float32, in the unit; `None` where no limit is set.
        case: The model.
        calibration: Sets of inputs.
        judge: Gives the score of a function that runs the model: the higher, the better.
    """

    title: str
    score: str
    unit: str
    limit: float | None
    case: ModelCase
    calibration: Sequence[tuple[Array, ...]]
    judge: Callable[[Run], float]


def paragraphs(half: int) -> list[str]:
    """Paragraphs of two sentences or more, each from the topic where it stands first: every second topic."""
    first: dict[str, int] = {}
    for number, name in enumerate(sorted(topics)):
        for paragraph in topics[name].split("\n\n"):
            first.setdefault(" ".join(paragraph.split()), number)
    return [text for text, number in first.items() if number % 2 == half and len(_halves(text)[1].split()) >= 8]


def _halves(paragraph: str) -> tuple[str, str]:
    """The first sentence, and the rest."""
    sentence, _, rest = paragraph.partition(". ")
    return sentence, rest


def reciprocal_ranks(queries: Array, documents: Array) -> Array:
    """One over the place at which each query finds its document, by cosine.

    Args:
        queries: `[N, D]`, of length one.
        documents: `[N, D]`, in the same order.
    """
    scores = queries @ documents.T
    right = np.diagonal(scores)[:, None]
    return np.asarray(1.0 / (1 + (scores > right).sum(axis=1)))


def _retrieval() -> Task:
    measured = [_halves(text) for text in paragraphs(1)]

    def embeddings(run: Run, texts: Sequence[str]) -> Array:
        return np.concatenate([run(*batch)[:count] for batch, count in _batches(texts)])

    def judge(run: Run) -> float:
        queries, documents = (embeddings(run, [pair[side] for pair in measured]) for side in (0, 1))
        return float(reciprocal_ranks(queries, documents).mean())

    given = [batch for batch, _ in _batches(paragraphs(0)[: _CALIBRATING * _BATCH])]
    title = f"MiniLM finds the rest of {len(measured)} paragraphs by their first sentences"
    return Task(title, "mean reciprocal rank", "", 0.005, minilm.batch_32(), given, judge)


def _batches(texts: Sequence[str]) -> Iterator[tuple[tuple[Array, ...], int]]:
    """Tokens of so many texts at once, and how many of them are no filling."""
    for start in range(0, len(texts), _BATCH):
        part = list(texts[start : start + _BATCH])
        ids, mask = minilm.tokenize(part + [""] * (_BATCH - len(part)))
        yield (ids.numpy(), mask.numpy()), len(part)


def lines(half: int, count: int) -> list[tuple[str, Array]]:
    """Lines of the manual, and pictures of them `[1, 3, 48, 320]` from -1 to 1: sizes, colours and noise vary.

    Args:
        half: Of the paragraphs.
        count: How many, spread over the text.
    """
    rng = np.random.default_rng(half)
    words = [word for text in paragraphs(half) for word in text.split() if word.isascii() and len(word) > 1]
    fonts = [ImageFont.load_default(size) for size in range(26, 35, 4)]
    result = []
    for start in np.linspace(0, len(words) - 20, count).astype(int):
        font = fonts[int(rng.integers(len(fonts)))]
        text = words[start]
        for word in words[start + 1 : start + 20]:
            if font.getlength(f"{text} {word}") > _LINE[1] - 12:
                break
            text = f"{text} {word}"
        ground, ink = rng.integers(150, 256, 3), rng.integers(0, 90, 3)
        width = min(int(font.getlength(text)) + 12, _LINE[1])
        picture = Image.new("RGB", (width, _LINE[0]), tuple(map(int, ground)))
        ImageDraw.Draw(picture).text((6, _LINE[0] // 2), text, tuple(map(int, ink)), font, anchor="lm")
        noisy = np.asarray(picture, np.float32) + rng.normal(0, 8, (_LINE[0], width, 3))
        x = np.zeros((1, 3, *_LINE), np.float32)  # zeros to the right of a line, as PaddleOCR fills it up
        x[0, :, :, :width] = (np.clip(noisy, 0, 255) / 127.5 - 1).transpose(2, 0, 1)
        result.append((text, x))
    return result


def edits(found: str, right: str) -> int:
    """How many characters have to be put in, left out or changed (Levenshtein)."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(found, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def _reading() -> Task:
    case = ppocr.recognition()
    assert isinstance(case.model, Path)
    characters = _characters(case.model)
    measured = lines(1, _LINES)

    def judge(run: Run) -> float:
        # Without spaces, as PaddleOCR's own metric: the model was trained on Chinese.
        pairs = [("".join(_text(run(x)[0], characters).split()), "".join(text.split())) for text, x in measured]
        return 100 * (1 - sum(edits(*pair) for pair in pairs) / sum(len(right) for _, right in pairs))

    given: list[tuple[Array, ...]] = [(x,) for _, x in lines(0, _LINES // 4)]
    title = f"PP-OCRv4 reads {len(measured)} lines of rendered text"
    return Task(title, "right characters", "%", 0.2, case, given, judge)


def _characters(model: Path) -> list[str]:
    """What each class stands for; the first one for nothing."""
    (text,) = (entry.value for entry in onnx.load(model).metadata_props if entry.key == "character")
    return ["", *text.splitlines(), " "]


def _text(scores: Array, characters: Sequence[str]) -> str:
    """The best class of each column, `[T, classes]`, repetitions counted once."""
    best = scores.argmax(axis=1)
    return "".join(characters[c] for i, c in enumerate(best) if not i or c != best[i - 1])


_SCIKIT_IMAGE = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png", "microaneurysms.png",
    "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png",
)  # fmt: skip
_PICTURES = (
    *(("scikit-image", f"skimage/data/{name}") for name in _SCIKIT_IMAGE),
    *(("scikit-learn", f"sklearn/datasets/images/{name}") for name in ("china.jpg", "flower.jpg")),
)
"""By the distribution that brings them."""


def pictures(half: int, crops: int) -> list[Array]:
    """Crops `[1, 3, 224, 224]` of about -1 to 1 of every second picture: of 40 to 100 percent of its shorter side."""
    rng = np.random.default_rng(half)
    files = [package_file(*place) for place in _PICTURES]
    result = []
    for file in files[half::2]:
        picture = Image.open(file).convert("RGB")
        for _ in range(crops):
            side = int(min(picture.size) * rng.uniform(0.4, 1.0))
            left, top = (int(rng.integers(0, whole - side + 1)) for whole in picture.size)
            crop = picture.resize((_CROP, _CROP), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
            pixels = (np.asarray(crop, np.float32) - 127) / 128
            result.append(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
    return result


def _naming() -> Task:
    measured = pictures(1, _CROPS)
    case = load("efficientnet-lite0")
    right: list[int] = []

    def judge(run: Run) -> float:
        found = [int(run(x).argmax()) for x in measured]
        right[:] = right or found  # the first that is judged is float32
        return 100 * float(np.mean(np.equal(found, right)))

    given: list[tuple[Array, ...]] = [(x,) for x in pictures(0, _CALIBRATING)]
    title = f"EfficientNet-lite0 names {len(measured)} crops of photographs"
    return Task(title, "agreement with float32", "%", None, case, given, judge)


TASKS: dict[str, Callable[[], Task]] = {"minilm": _retrieval, "ppocr-rec": _reading, "efficientnet-lite0": _naming}
"""By the name of the model."""
