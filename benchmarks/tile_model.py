"""How well the tile model predicts: kernels of many shapes, the predicted time beside the measured one.

What counts is the order: a model that ranks shapes right ranks choices right. `docs/tile-model.md` explains the model.

    python -m benchmarks.tile_model [--threads N] [--write]
"""

from __future__ import annotations

import argparse
import datetime
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from benchmarks.results import Section, console
from optimizer import optimize
from optimizer.executable import KernelTime
from optimizer.text import seconds

__all__ = ["CASES", "Case", "Row", "correlation", "measure"]

SECTION = Section(
    "The tile model",
    ("kernel", "shape", "predicted", "measured", "ratio", "bound by", "reached"),
    frozenset({"kernel", "shape", "bound by"}),
    "<!-- begin: written by benchmarks.tile_model -->",
    "<!-- end of benchmarks.tile_model -->",
)
ROUNDS = 20
"""A time is the shortest of so many: what else the machine does only ever adds."""


@dataclass(frozen=True)
class Case:
    """One operator.

    Attributes:
        kind: Of kernel, as the model distinguishes them.
        shape: As the table shows it.
        nodes: The graph's body, in ONNX's text.
        inputs: Shapes of its inputs, in order.
        weights: Shapes of its initializers, by name.
    """

    kind: str
    shape: str
    nodes: str
    inputs: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def model(self) -> onnx.ModelProto:
        """The model, with normally distributed weights."""
        random = np.random.default_rng(0)
        declared = ", ".join(f"float[{','.join(map(str, s))}] x{i}" for i, s in enumerate(self.inputs))
        text = f'<ir_version: 11, opset_import: ["" : 23]> g ({declared}) => (float[] y) {{ {self.nodes} }}'
        model = onnx.parser.parse_model(text)
        model.graph.output[0].type.tensor_type.ClearField("shape")
        for name, shape in self.weights:
            array = random.standard_normal(shape, np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return model


@dataclass(frozen=True)
class Row:
    """A case, and the row of a profile that it is about."""

    case: Case
    kernel: KernelTime

    @property
    def predicted(self) -> float:
        """Seconds."""
        assert self.kernel.forecast is not None, "every kernel of the sweep is one that the model knows"
        return self.kernel.forecast.seconds

    def cells(self) -> list[str]:
        """The row of the table."""
        forecast, measured = self.kernel.forecast, self.kernel.seconds
        assert forecast is not None, "as above"
        return [
            self.case.kind,
            self.case.shape,
            seconds(self.predicted),
            seconds(measured),
            f"{self.predicted / measured:.2f}",
            forecast.bound,
            f"{forecast.share(measured):.0%}",
        ]


def _matmul(rows: int, depth: int, columns: int) -> Case:
    shape = f"{rows} x {depth} x {columns}"
    return Case("matmul", shape, "y = MatMul(x0, w)", ((rows, depth),), (("w", (depth, columns)),))


def _conv(kind: str, size: int, given: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> Case:
    pad = kernel // 2
    attributes = f"pads=[{pad},{pad},{pad},{pad}], strides=[{stride},{stride}], group={groups}"
    shape = f"{given} to {out} at {size} x {size}, {kernel} x {kernel}" + (f", stride {stride}" if stride > 1 else "")
    weights = (("w", (out, given // groups, kernel, kernel)),)
    return Case(kind, shape, f"y = Conv<{attributes}>(x0, w)", ((1, given, size, size),), weights)


def _attention(heads: int, rows: int, keys: int, size: int, causal: int = 0) -> Case:
    shape = f"{heads} heads, {rows} x {keys}, size {size}" + (", causal" if causal else "")
    inputs = ((1, heads, rows, size), (1, heads, keys, size), (1, heads, keys, size))
    return Case("attention", shape, f"y = Attention<is_causal={causal}>(x0, x1, x2)", inputs)


def _light(nodes: str, *inputs: tuple[int, ...]) -> Case:
    name = nodes.split("=", 1)[1].split("(")[0].split("<")[0].strip()
    return Case("light", f"{name} {' x '.join(map(str, inputs[0]))}", nodes, inputs)


_depthwise = partial(_conv, "depthwise")
_direct = partial(_conv, "conv2d")
_winograd = partial(_conv, "winograd")

CASES: tuple[Case, ...] = (
    *(_matmul(*size) for size in ((1, 768, 768), (1, 2048, 2048), (8, 512, 512), (16, 768, 3072), (37, 100, 211))),
    *(_matmul(*size) for size in ((64, 256, 256), (128, 768, 768), (128, 3072, 768), (384, 64, 384), (512, 512, 512))),
    *(_matmul(*size) for size in ((256, 1024, 1024), (1024, 32, 48), (128, 768, 3072), (512, 2048, 16))),
    _matmul(2048, 512, 256),
    _direct(112, 16, 96, 1),
    _direct(56, 64, 256, 1),
    _direct(14, 256, 1024, 1),
    _direct(7, 320, 1280, 1),
    _direct(112, 3, 32, 3, 2),
    _direct(64, 3, 64, 7, 2),
    _direct(28, 40, 40, 5),
    _direct(28, 128, 128, 3, 2),
    _winograd(56, 64, 64, 3),
    _winograd(28, 128, 128, 3),
    _winograd(14, 256, 256, 3),
    _depthwise(112, 32, 32, 3, 1, 32),
    _depthwise(56, 96, 96, 3, 2, 96),
    _depthwise(28, 144, 144, 5, 1, 144),
    _depthwise(14, 384, 384, 3, 1, 384),
    _attention(12, 128, 128, 64),
    _attention(4, 64, 64, 32),
    _attention(8, 512, 512, 64),
    _attention(8, 512, 512, 64, 1),
    _attention(2, 32, 1024, 64),
    _light("y = Relu(x0)", (1, 64, 112, 112)),
    _light("y = Add(x0, x1)", (128, 768), (128, 768)),
    _light("y = Add(x0, x1)", (2048, 1024), (2048, 1024)),
    _light("y = Gelu(x0)", (128, 3072)),
    _light("y = Gelu(x0)", (16, 256)),
    _light("y = Softmax(x0)", (1536, 128)),
    _light("y = Softmax(x0)", (64, 1000)),
    _light("y = Tanh(x0)", (512, 512)),
    _light("y = Div(x0, x1)", (256, 512), (256, 512)),
    _light("y = Transpose<perm=[0,2,1,3]>(x0)", (4, 128, 12, 64)),
    _light("y = Transpose<perm=[1,0]>(x0)", (768, 512)),
    _light("y = ReduceSum<keepdims=1>(x0)", (1024, 1024)),
    _light("y = Concat<axis=1>(x0, x1)", (64, 128, 14), (64, 128, 14)),
    _light("y = MaxPool<kernel_shape=[3,3],strides=[2,2]>(x0)", (1, 64, 56, 56)),
)
"""What is measured: every kind of kernel, from microseconds to milliseconds."""


def measure(case: Case, threads: int = 1, rounds: int = ROUNDS) -> Row:
    """Compile one case, and time its kernel; conversions of layout around it are kernels of their own."""
    random = np.random.default_rng(1)
    compiled = optimize(case.model(), verify="off", progress=False)
    compiled.num_threads = threads
    inputs = [random.standard_normal(shape, np.float32) for shape in case.inputs]
    best: KernelTime | None = None
    for _ in range(rounds):
        rows = compiled.profile(*inputs, repeats=1).kernels
        kernel = next(row for row in rows if "transpose" not in row.name or case.kind == "light")
        if best is None or kernel.seconds < best.seconds:
            best = kernel
    assert best is not None, "there is at least one round"
    return Row(case, best)


def correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's rank correlation: 1 where both orders are the same, -1 where one is the other's reverse."""
    first, second = (np.argsort(np.argsort([pair[i] for pair in pairs])) for i in (0, 1))
    return float(np.corrcoef(first, second)[0, 1])


def summary(rows: Sequence[Row]) -> str:
    """The correlation of all, and that of each kind, in one sentence."""
    pairs = {row.case: (row.predicted, row.kernel.seconds) for row in rows}
    logs = [abs(math.log(p / m)) for p, m in pairs.values()]
    kinds: dict[str, list[tuple[float, float]]] = {}
    for case, pair in pairs.items():
        kinds.setdefault(case.kind, []).append(pair)
    each = (f"{kind} {correlation(some):.2f}" for kind, some in kinds.items() if len(some) > 1)
    return (
        f"Spearman's rank correlation of predicted and measured seconds over {len(rows)} kernels: "
        f"{correlation(list(pairs.values())):.3f} ({', '.join(each)}). Half of the predictions are within a factor of "
        f"{math.exp(float(np.median(logs))):.2f}, nine of ten within {math.exp(float(np.quantile(logs, 0.9))):.2f}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, show, and with `--write` enter in RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--threads", type=int, default=1, help="of the kernels")
    parser.add_argument("--write", action="store_true", help="enter the table in RESULTS.md")
    options = parser.parse_args(arguments)
    rows = list(_measured(options.threads))
    cells = [row.cells() for row in rows]
    console().print(SECTION.table(cells))
    print(summary(rows))
    if options.write:
        today = datetime.datetime.now(datetime.UTC).date()
        heading = f"{today}, {options.threads} thread{'s' if options.threads > 1 else ''}. {summary(rows)}"
        SECTION.write(SECTION.markdown(heading, cells))


def _measured(threads: int) -> Iterable[Row]:
    for case in CASES:
        yield measure(case, threads)


if __name__ == "__main__":
    main()
