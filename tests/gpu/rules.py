"""One fused kernel by a GPU rule, run by OpenCL, beside the same kernel as TVM runs it on the CPU unscheduled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import tvm
from onnx_ir.passes.common import ShapeInferencePass
from tvm import relax, tirx

from backends.cpu.half import computed_in_float32
from backends.cuda.compiler import Compiler, compiler
from backends.cuda.source import cuda_code
from backends.gpu.device import DeviceCode, Parameter, device_code, opencl_target
from backends.gpu.launch import Launch, scheduled
from backends.relax.build import _AS_KERNELS, _BEFORE_SCHEDULES, Builder
from backends.relax.kernel import Kernel, decode, inline
from backends.relax.packing import element_type
from backends.relax.partition import segments
from backends.relax.size_formula import formula
from backends.relax.size_value import Formula, evaluate
from backends.relax.values import ConvShape
from optimizer.errors import TargetError
from optimizer.gpus import GPUS, Gpu
from tests.gpu.emulation import emulated

Array = npt.NDArray[Any]
Rule = Callable[[Kernel, Gpu], list[Launch] | None]

RNG = np.random.default_rng(3)


class PlainTiles:
    """Panels of one width for everything."""

    def __init__(self, width: int = 64) -> None:
        self.width = width

    def four_bit_width(self, columns: int) -> int:
        return self.width

    def asked_by(self, node: Callable[[], str]) -> None:
        pass

    def panel_width(self, rows: int | None, columns: int, depth: int, dtype: str = "float32", taps: int = 1) -> int:
        return self.width

    def together(self, dtype: str) -> int:
        return 1

    def attends(self, dtype: str, size: int = 0) -> bool:
        return dtype in ("float32", "bfloat16", "float16")

    def winograd_width(self, shape: ConvShape) -> int | None:
        return None


@dataclass(frozen=True)
class Fused:
    """What the emitters and TVM's fusion make of a model.

    Attributes:
        functions: the kernels.
        derived: symbolic sizes that follow from the others.
    """

    functions: dict[str, tirx.PrimFunc]
    derived: dict[str, Formula]

    def one(self, kind: str) -> tirx.PrimFunc:
        """The one kernel that has a stage of that kind."""
        found = [f for f in self.functions.values() if kind in _kinds(f)]
        assert len(found) == 1, f"{len(found)} kernels of kind {kind!r}"
        return found[0]

    def sizes(self, given: Mapping[str, int]) -> dict[str, int]:
        """All symbolic sizes, from those that the inputs show."""
        found = dict(given)
        for name, how in self.derived.items():
            found[name] = evaluate(how, found)
        return found


def fused(model: onnx.ModelProto, tiles: PlainTiles | None = None) -> Fused:
    """The kernels of a model."""
    weights = {i.name for i in model.graph.initializer}
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    graph = ShapeInferencePass()(ir.from_proto(model)).model
    for value in graph.graph.initializers.values():
        value.type = value.type or ir.TensorType(value.const_value.dtype)  # type: ignore[union-attr]
    small = {name: array for name, array in constants.items() if array.nbytes <= 1 << 16}
    builder = Builder(graph, small, weights, tvm.transform.Sequential([]), tiles or PlainTiles())
    nodes = list(graph.graph)
    builder._probe(nodes, {})
    assert not builder.reasons, builder.reasons
    module = relax.BlockBuilder()
    builder._emit(module, segments(nodes, set()))
    with tvm.target.Target("llvm"):
        passes = [_AS_KERNELS, relax.transform.FuseOps(), relax.transform.FuseTIR(), *_BEFORE_SCHEDULES]
        kernels = tvm.transform.Sequential(passes)(module.get())
    functions = {v.name_hint: f for v, f in kernels.functions.items() if isinstance(f, tirx.PrimFunc)}
    return Fused(functions, {v.name: formula(e) for v, e in builder.definitions.items()})


def _kinds(function: tirx.PrimFunc) -> set[str]:
    kernel = decode(function)
    return set() if kernel is None else {stage.kind for stage in kernel.stages}


def launches(function: tirx.PrimFunc, rule: Rule, gpu: Gpu) -> list[Launch]:
    """What the rule makes of a kernel; it has to take it."""
    kernel = decode(function)
    assert kernel is not None
    result = rule(inline(kernel), gpu)
    assert result is not None, "the rule does not take the kernel"
    return result


def arguments(function: tirx.PrimFunc, sizes: Mapping[str, int]) -> list[Array | int]:
    """Seeded inputs, and outputs that hold a number that no kernel computes."""
    kernel = decode(function)
    assert kernel is not None
    return [_argument(p, sizes, written=kernel.is_output(p) and _written(kernel, p)) for p in function.params]


def _written(kernel: Kernel, buffer: tirx.Var) -> bool:
    return any(stage.buffer.same_as(buffer) for stage in kernel.stages)


def _argument(parameter: tirx.Var, sizes: Mapping[str, int], *, written: bool) -> Array | int:
    if not isinstance(parameter.ty, tirx.BufferType):
        return sizes[str(parameter.name)]
    shape = [evaluate(formula(d), sizes) for d in parameter.shape]
    dtype = element_type(str(parameter.dtype))
    if written:
        return np.full(shape, 77, dtype)
    if dtype.kind == "b":
        return RNG.random(shape) < 0.7
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return RNG.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return RNG.standard_normal(shape).astype(dtype)


def expected(function: tirx.PrimFunc, given: list[Array | int]) -> list[Array]:
    """All buffers after TVM's own CPU code of the kernel ran."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    run = tvm.compile(module, target="llvm")["main"]
    tensors = [g if isinstance(g, int) else tvm.runtime.tensor(g) for g in given]
    run(*tensors)
    return [t.numpy() for t in tensors if not isinstance(t, int)]


@cache
def queue() -> tuple[Any, Any]:
    """OpenCL's context and queue of the first device."""
    cl = pytest.importorskip("pyopencl", reason="pyopencl is not installed")
    try:
        device = cl.get_platforms()[0].get_devices()[0]
    except cl.LogicError as error:
        pytest.skip(f"no OpenCL platform: {error}")
    context = cl.Context([device])
    return context, cl.CommandQueue(context)


def computed(
    function: tirx.PrimFunc, made: list[Launch], given: list[Array | int], sizes: Mapping[str, int]
) -> list[Array]:
    """All buffers after the launches ran on an OpenCL device."""
    import pyopencl as cl

    context, commands = queue()
    code = device_code({"kernel": _without_halves(scheduled(function, made))}, opencl_target(256, 48 << 10))
    program = cl.Program(context, emulated(code.source)).build()
    flags = cl.mem_flags
    held = [
        None if isinstance(g, int) else cl.Buffer(context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=g)
        for g in given
    ]
    scratch = [cl.Buffer(context, flags.READ_WRITE, max(1, evaluate(n, sizes))) for n in code.scratch["kernel"]]

    def passed(parameter: Parameter) -> list[Any]:
        if parameter.size is not None:
            return [np.dtype(parameter.dtype).type(evaluate(parameter.size, sizes))]
        buffer = held[parameter.position] if parameter.position >= 0 else scratch[parameter.scratch]
        return [buffer, np.int64(0)]

    for start in code.starts["kernel"]:
        grid = [evaluate(g, sizes) * b for g, b in zip(start.grid, start.block, strict=True)]
        values = [v for p in start.parameters for v in passed(p)]
        getattr(program, start.entry)(commands, grid, start.block, *values)
    results = []
    for own, buffer in zip(given, held, strict=True):
        if not isinstance(own, int) and buffer is not None:
            result = np.empty_like(own)
            cl.enqueue_copy(commands, result, buffer)
            results.append(result)
    commands.finish()
    return results


def _without_halves(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with arithmetic in float32 in place of float16, which not every device has."""
    done = tirx.PrimFunc(function.params, computed_in_float32(function.body), function.ret_type)
    for key, value in (function.attrs or {}).items():
        done = done.with_attr(key, value)
    return done


def distance(ours: Array, theirs: Array) -> float:
    """Relative, in the Euclidean norm."""
    norm = float(np.linalg.norm(theirs.astype(np.float64)))
    return float(np.linalg.norm(ours.astype(np.float64) - theirs.astype(np.float64))) / (norm or 1.0)


def agrees(
    model: onnx.ModelProto,
    kind: str,
    rule: Rule,
    sizes: Mapping[str, int] | None = None,
    gpu: Gpu = GPUS["opencl"],
    tiles: PlainTiles | None = None,
) -> None:
    """Demand that the rule's launches compute what the kernel says, within 1e-5."""
    found = fused(model, tiles)
    function, all_sizes = found.one(kind), found.sizes(sizes or {})
    given = arguments(function, all_sizes)
    wanted = expected(function, given)
    results = computed(function, launches(function, rule, gpu), given, all_sizes)
    for ours, theirs in zip(results, wanted, strict=True):
        assert distance(ours, theirs) <= 1e-5


def cuda_source(function: tirx.PrimFunc, rule: Rule, gpu: Gpu) -> DeviceCode:
    """The kernel's CUDA program."""
    return cuda_code({"kernel": scheduled(function, launches(function, rule, gpu))}, gpu)


@cache
def nvidia() -> Compiler:
    """NVIDIA's compiler, if this machine has one."""
    try:
        return compiler()
    except TargetError as error:
        pytest.skip(str(error))
