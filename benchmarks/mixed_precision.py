"""A `PrecisionPolicy` beside 4 bits for all layers, at the same number of bits for a weight.

    python -m benchmarks.mixed_precision                            # MiniLM and SmolLM2-135M
    python -m benchmarks.mixed_precision --models minilm --method rtn
    python -m benchmarks.mixed_precision --write                    # into benchmarks/RESULTS.md

All are quantized with the same method and calibration data, and measured on other text of Python's manual: MiniLM by
the relative error of its embeddings, SmolLM2 by its perplexity, and by how far what it predicts diverges from what the
float32 model does, which chance moves less. SmolLM2's weights are stored in blocks of 32 with 4 bits, which a policy
would find: of the forms that a policy has by default it gets all but these.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks import perplexity
from benchmarks.accuracy_tasks import paragraphs
from benchmarks.results import Section, console
from models import minilm, smollm2
from optimizer.calibration import Samples
from optimizer.frontends import load_model
from optimizer.layer_board import find_units
from optimizer.ort_session import OrtSession
from optimizer.pass_manager import PassManager
from optimizer.policy_outcome import PolicyOutcome
from optimizer.precision_policy import PrecisionPolicy
from passes.mix_precision import MixPrecision
from passes.pipelines import default_pipeline
from passes.quantization.policy_search import relative_error
from passes.quantize_int4 import QuantizeInt4

__all__ = ["MODELS", "SECTION", "Contest", "Row", "measure"]

_UNIFORM = ((True, "float32"), (False, "float32"), (False, "float16"))
"""Blocks of 64 without and with zero points, and the type of the scales: 4.5, 4.56 and 4.31 bits a weight."""
_TEXTS, _LENGTH = 8, 96
_MEASURED_LENGTH = 320

SECTION = Section(
    title="A form for each layer, beside 4 bits for all",
    columns=("model", "forms", "bits a weight", "measure", "result", "loses", "divergence", "seconds"),
    texts=frozenset({"model", "forms", "measure"}),
    begin="<!-- begin: written by benchmarks.mixed_precision -->",
    end="<!-- end of benchmarks.mixed_precision -->",
)


@dataclass(frozen=True)
class Contest:
    """A model, and how it is judged.

    Attributes:
        model: In float32.
        samples: Calibration data.
        operators: Those that are quantized.
        forms: What a policy may choose from.
        measure: What is counted.
        judge: Counts it: the lower, the better; and the divergence from the float32 model, in nats for each token.
    """

    model: ir.Model
    samples: Samples
    operators: str
    forms: tuple[str, ...]
    measure: str
    judge: Callable[[ir.Model], tuple[float, float | None]]


@dataclass(frozen=True)
class Row:
    """A quantized model.

    Attributes:
        forms: Of its layers.
        bits: Of a weight in the mean, scales counted, over the layers that were quantized.
        result: Of the measure.
        loses: How much more that is than in float32.
        divergence: From what the float32 model predicts, if the model predicts tokens.
        seconds: That it took to quantize.
    """

    forms: str
    bits: float
    result: float
    loses: float
    divergence: float | None
    seconds: float


def _minilm(folder: Path) -> Contest:
    del folder
    case = minilm.case()
    model = load_model(case.model, example_inputs=case.example_inputs)
    PassManager(default_pipeline("onnx")).run(model)

    def sets(half: int) -> list[list[object]]:
        return [[tensor.numpy() for tensor in minilm.tokenize([text])] for text in paragraphs(half)[:24]]

    measured = sets(1)

    def outputs(of: ir.Model) -> list[list[object]]:
        session = OrtSession.from_model(of, num_threads=2)
        return [session.run(given) for given in measured]

    exact = outputs(model)
    forms = ("float32", "int8-dynamic", "int4-32", "int4-64", "int4-128", "int4")
    samples = Samples.of(model.graph, sets(0))
    operators = "MatMul+Gemm+Gather"

    def judge(of: ir.Model) -> tuple[float, None]:
        return relative_error(outputs(of), exact), None

    return Contest(model, samples, operators, forms, "relative error", judge)


def _smollm2(folder: Path) -> Contest:
    tokenizer = smollm2.tokenizer()
    model = perplexity.float_model()
    given = perplexity.calibration_tokens(tokenizer)[: 3 * _TEXTS : 3, :_LENGTH]
    measured = perplexity.measured_tokens(tokenizer)[:, :_MEASURED_LENGTH]

    def predictions(of: ir.Model) -> list[perplexity.Logarithms]:
        path = folder / "smollm2.onnx"
        Path(f"{path}.data").unlink(missing_ok=True)
        ir.save(of.clone(), path, external_data=f"{path.name}.data")
        return [found.astype(np.float32) for found in perplexity.predictions(path, measured, 2)]

    exact = predictions(model)

    def judge(of: ir.Model) -> tuple[float, float]:
        found = predictions(of)
        return perplexity.perplexity_of(found, measured), perplexity.divergence(found, exact)

    samples = Samples.of(model.graph, map(perplexity.inputs_of, given))
    forms = ("float32", "int8", "int8-dynamic", "int4-64", "int4-128")
    return Contest(model, samples, "MatMul+Gemm", forms, "perplexity", judge)


MODELS: dict[str, Callable[[Path], Contest]] = {"minilm": _minilm, "smollm2-135m": _smollm2}


def measure(contest: Contest, method: str) -> Iterator[Row]:
    """A row for float32, for each uniform form, and for a policy at the bits of each that has no fewer.

    Args:
        contest: The model.
        method: How codes of 4 bits are found, for all.
    """
    exact, none = contest.judge(contest.model)
    yield Row("float32", 32.0, exact, 0.0, none, 0.0)
    bounds = []
    for symmetric, scales in _UNIFORM:
        start, model = time.perf_counter(), contest.model.clone()
        QuantizeInt4(
            method=method,
            symmetric=symmetric,
            scale_type=scales,
            op_types_to_quantize=contest.operators,
            samples=contest.samples,
        )(model)
        seconds = time.perf_counter() - start
        units, _ = find_units(contest.model, {"int4": model})
        bits = 8 * sum(unit.sizes["int4"] for unit in units) / sum(unit.elements for unit in units)
        bounds.append(bits)
        result, divergence = contest.judge(model)
        name = f"blocks of 64{'' if symmetric else ', zero points'}, {scales} scales"
        yield Row(name, bits, result, result - exact, divergence, seconds)
    for bits in (bounds[0], bounds[-1]):
        outcomes: list[PolicyOutcome] = []
        start, model = time.perf_counter(), contest.model.clone()
        policy = PrecisionPolicy(max_bits=bits, forms=contest.forms, method=method)
        MixPrecision(policy=policy, samples=contest.samples, chosen=outcomes.append)(model)
        seconds = time.perf_counter() - start
        result, divergence = contest.judge(model)
        name = f"PrecisionPolicy(max_bits={bits:.4g})"
        yield Row(name, outcomes[0].bits, result, result - exact, divergence, seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixed_precision", description=SECTION.title)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--method", default="auto", help="of quantize-int4, for all (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args(arguments)
    out, table = console(), []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            contest = MODELS[name](Path(folder))
            for row in measure(contest, options.method):
                figures = f"{row.bits:.3f}", contest.measure, f"{row.result:.4g}", f"{row.loses:.3g}"
                divergence = "" if row.divergence is None else f"{row.divergence:.4f}"
                table.append((name, row.forms, *figures, divergence, f"{row.seconds:.0f}"))
                out.print(*table[-1])
    out.print(SECTION.table(table))
    if options.write:
        heading = (
            f"`python -m benchmarks.mixed_precision --method {options.method}`, {time.strftime('%Y-%m-%d')}.\n"
            "Seconds are those of the quantization, and of the search."
        )
        SECTION.write(SECTION.markdown(heading, table))
        out.print("written to RESULTS.md")


if __name__ == "__main__":
    main()
