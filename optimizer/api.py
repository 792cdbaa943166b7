"""`optimize()` and `load()`: the whole way of a model, one line a stage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from backends import get_backend
from backends.layer_speed import layer_speed
from optimizer.artifact import load_artifact
from optimizer.compiled import CompiledModel
from optimizer.errors import InputError, PipelineError
from optimizer.memory import old_objects_aside
from optimizer.memory_budget import Fitted, Stage, check_sizes, fit, joined, parse_budget
from optimizer.precision import check_precision, precision_notes
from optimizer.precision_policy import PrecisionPolicy
from optimizer.progress import Stages
from optimizer.report import NearMissRow, Report
from optimizer.target import Cpu, Target, detect_cpu
from optimizer.tuning import Tuning, parse_tune
from optimizer.versions import versions

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimizer.executable import Executable
    from optimizer.pass_manager import Pass
    from optimizer.policy_outcome import PolicyOutcome
    from optimizer.reference import Oracle

__all__ = ["load", "optimize", "pipeline_of"]

_LARGE_BYTES = 2**26
"""From so many bytes of weights on, the reference has the memory to itself that the backend holds while it waits."""


@old_objects_aside()
def optimize(
    model: object,
    target: str | Target = "cpu",
    *,
    example_inputs: object = None,
    dynamic_shapes: object = None,
    precision: str | PrecisionPolicy = "float32",
    calibration: object = None,
    memory_budget: int | str | None = None,
    tune: str | float | None = None,
    passes: str | Sequence[Pass] | None = None,
    verify: str = "final",
    fallback: str = "onnxruntime",
    seed: int = 0,
    progress: bool | None = None,
    cache: bool | str | os.PathLike[str] = True,
) -> CompiledModel:
    """Optimize a model, compile it for a target, and check that it still computes the same.

    Args:
        model: A `torch.nn.Module`, a `torch.export.ExportedProgram`, the path of an `.onnx` file, an `onnx.ModelProto`
            or an `onnx_ir.Model`. It is not changed.
        target: Where it will run: `"cpu"` (this machine), `"cpu:x86-64-v3"`, `"onnx"` (the optimized graph in ONNX
            Runtime), `"onnx:17"` (of no newer operators than those of opset 17), `"onnx:17+ai.onnx"` (of no others than
            the standard ones), `"onnx:17+com.microsoft"` (ONNX Runtime's own ones, too), `"opencl"` (the first GPU;
            `"opencl:1"` names another device), `"cuda"` (the first GPU; `"cuda:sm_90"` names an architecture), or a
            `Target`.
        example_inputs: What the model is called with: a tensor or array, a tuple of positional arguments, or a dict by
            name. A module needs it to be exported; for others it says which sizes to verify with.
        dynamic_shapes: For a module: which dimensions stay dynamic, as in `torch.export.export`.
        precision: `"float32"`, or `"bfloat16"` (CPU, CUDA) or `"float16"` (GPUs, ONNX): products, convolutions and what
            lies between them are computed in that; inputs and outputs stay float32, as does what would lose too much.
            `"int8"`: products and convolutions of rounded numbers; `"int4"`: weights alone; the report says what that
            loses. A `PrecisionPolicy` chooses among these for each layer by itself, under a budget.
        calibration: For `"int8"` and `"int4"`: sets of inputs like those that the model will meet, any iterable of
            dicts by name. Without it int8 finds the ranges of activations while it runs, and leaves convolutions be;
            int4 knows the weights alone.
        memory_budget: The most that intermediate results and outputs may take at one time: bytes, or `"512MB"`. Parts
            of the graph are then computed piece by piece, as far as that is needed; the report gives the price in time.
        tune: Measure alternatives to what the tile model chooses for at most `"30s"`, `"2m"` or so many seconds, and
            take what is faster; on this machine alone, and for kernels whose sizes are known. What is found is kept
            with the cache, for other models, too. Without it nothing is measured, and nothing of that is used.
        passes: A pipeline string such as `"fold-constants,remove-unused"`, or a list of passes; the target's own
            pipeline when not given.
        verify: `"final"` compares the compiled model with the original in ONNX Runtime on seeded inputs; `"each"` also
            checks every pass: one that breaks the model is rolled back and named in the report, and the smallest model
            that shows it is saved in the folder `tersor-faults`; `"off"` compares nothing.
        fallback: What to do with operators that the target cannot compile: `"onnxruntime"` runs them there and says so
            in the report, `"error"` refuses them.
        seed: For the inputs of the verification. Same model, options and versions: same result.
        progress: Whether to show the stages on standard error; by default if it is a terminal.
        cache: Whether a result that was made before, of the same model with the same options on the same machine, may
            be used again, and this one be kept for that; or the folder to keep it in. `verify="each"` always runs.

    Returns:
        The compiled model, with a report of what was done.

    Raises:
        TersorError: One of `optimizer.errors`, by what went wrong.
    """
    arguments = dict(locals())  # whatever is a parameter, now or one day, is a part of the cache's key
    from backends.tuning import TuningStage
    from optimizer.cache import Lookup
    from optimizer.calibrated_passes import check_calibration, with_samples
    from optimizer.calibration import Samples
    from optimizer.frontends import load_model
    from optimizer.graph_stage import run_passes
    from optimizer.ir.weights import weight_bytes
    from optimizer.model_diff import read_side
    from optimizer.verification import example_for, make_oracle, prewarm, verify_executable

    place = Target.parse(target)
    backend = get_backend(place.kind)
    check_precision(precision, str(place), place.onnx.precisions(backend.precisions))
    _check_options(verify, fallback, seed)
    budget = parse_budget(memory_budget)
    tune_seconds = parse_tune(tune, place, memory_budget)
    pipeline = pipeline_of(passes, place, precision, calibrated=calibration is not None)
    check_calibration(calibration, pipeline)
    stages = Stages(progress)
    lookup = Lookup(arguments, pipeline, place)
    found = lookup.find(get_backend, stages)
    if found is not None:
        return found
    prewarm(verify)
    backend.prewarm()
    cpu = place.cpu or detect_cpu()
    notes: tuple[str, ...] = ()
    with stages("reading the model"):
        graph = load_model(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
        original = read_side(graph, "original")
        samples = None if calibration is None else Samples.of(graph.graph, calibration)
        mixes: list[PolicyOutcome] = []
        pipeline = with_samples(pipeline, samples, stages.detail, chosen=mixes.append, speed=layer_speed(place))
    large = weight_bytes(graph) >= _LARGE_BYTES
    if large:
        backend.rest()
    with stages("running the reference"):
        example = example_for(graph.graph, model, example_inputs)
        oracle, verification = make_oracle(graph, verify, seed, example, samples)
    if large:
        backend.prewarm()
    with stages("optimizing the graph"):
        run = run_passes(graph, pipeline, oracle, verify, cpu.l3_bytes)
        original.removed_by = run.removed_by
    tuner = None if tune_seconds is None else TuningStage(tune_seconds, place, cache, str(precision))
    target_now = place if tuner is None else tuner.target
    compile_graph = partial(backend.compile, target=target_now, fallback=fallback, progress=stages.detail)
    with stages("compiling"):
        if budget is None:
            executable = compile_graph(graph)
        else:
            fitted = _fit(graph, budget, place, compile_graph, oracle, verify, cpu, stages.detail)
            graph, executable, run = fitted.model, fitted.executable, joined(run, fitted.run)
            original.removed_by = run.removed_by
            notes = fitted.notes
    tuning: Tuning | None = None
    if tuner is not None:
        with stages("tuning"):
            example = example_for(graph.graph, model, example_inputs) if oracle is None else None
            inputs = tuner.inputs(executable, graph.graph, seed, example) if oracle is None else oracle.inputs
            again = partial(compile_graph, graph)
            taken = stages.seconds["compiling"]
            executable, tuning = tuner.run(executable, lambda t: again(target=t), inputs, taken, stages.detail)
    with stages("verifying"):
        verification = verify_executable(executable, oracle, verification, cpu.cores, graph)
    report = Report(
        target=str(place),
        precision=str(precision),
        before=run.before,
        after=run.after,
        passes=run.rows,
        stages=stages.seconds,
        verification=verification,
        notes=(*notes, *run.notes, *precision_notes(graph, precision), *executable.notes),
        versions=versions(),
        usage_before=run.usage_before,
        usage=run.usage,
        near_misses=tuple(NearMissRow(m.pass_name, m.node, m.reason, m.origins) for m in run.near_misses),
        memory=executable.memory,
        layers=run.layers,
        tuning=tuning,
        policy=mixes[-1] if mixes else None,
    )
    compiled = CompiledModel(
        executable,
        graph=lambda: graph,
        original=lambda: original,
        report=report,
        target=str(place),
        num_threads=cpu.cores,
    )
    unfinished = tuning is not None and tuning.left  # the same call again goes on
    return compiled if unfinished else lookup.keep(compiled, executable, original)


def _fit(
    graph: ir.Model,
    budget: int,
    target: Target,
    compile_graph: Callable[[ir.Model], Executable],
    oracle: Oracle | None,
    verify: str,
    cpu: Cpu,
    detail: Callable[[str], None],
) -> Fitted:
    """Cut the graph until it is within the budget; see `optimizer.memory_budget`."""
    from optimizer.graph_stage import run_passes
    from passes.tile_memory import TileMemory, figures_of

    check_sizes(graph)
    fused = target.kind != "onnx"
    stage = Stage(
        cut=lambda model, aim: run_passes(model, [TileMemory(aim, fused)], oracle, verify, cpu.l3_bytes),
        predict=lambda model: figures_of(model, fused),
        compile=compile_graph,
        inputs=None if oracle is None else oracle.inputs,
        num_threads=cpu.cores,
        detail=detail,
    )
    return fit(graph, budget, stage)


def load(path: str | os.PathLike[str]) -> CompiledModel:
    """Read a compiled model that `CompiledModel.save` wrote. Imports neither PyTorch, nor the passes, nor a compiler.

    Raises:
        ArtifactError: The file cannot be read, is damaged or was changed, or is of another format or machine.
    """
    return load_artifact(Path(path), get_backend)


def _check_options(verify: str, fallback: str, seed: int) -> None:
    _one_of("verify", verify, ("off", "final", "each"))
    _one_of("fallback", fallback, ("onnxruntime", "error"))
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed must be an integer of at least 0, not {seed!r}")


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def pipeline_of(
    passes: str | Sequence[Pass] | None,
    target: Target,
    precision: str | PrecisionPolicy = "float32",
    *,
    calibrated: bool = False,
) -> list[Pass]:
    """The passes that `optimize()` runs.

    Args:
        passes: A pipeline string, a list of passes, or `None` for the target's own pipeline.
        target: Where the model will run.
        precision: The conversion to it stands at the end, unless the passes hold one.
        calibrated: Whether there is calibration data.

    Raises:
        PipelineError: The string is malformed or names what does not exist, or the list holds something else.
    """
    from optimizer.pass_manager import Pass, parse_pipeline
    from passes.pipelines import default_pipeline, in_precision, within

    def complete(given: Sequence[Pass]) -> list[Pass]:
        if target.onnx.contrib:
            return within(in_precision(given, precision, target.kind, calibrated), target.onnx)
        return in_precision(within(given, target.onnx), precision, target.kind, calibrated)

    if passes is None:
        return complete(default_pipeline(target.kind))
    if isinstance(passes, str):
        from passes.registry import PASSES

        parsed = parse_pipeline(passes, PASSES) if passes.strip() else []
        return complete(parsed)
    if not isinstance(passes, Iterable):
        raise PipelineError(f"passes must be a pipeline string or a list of passes, not {type(passes).__name__}")
    listed = list(passes)
    for pass_ in listed:
        if not isinstance(pass_, Pass):
            raise PipelineError(f"passes must be a pipeline string or a list of passes, it holds {pass_!r}")
    return complete(listed)
