"""The kernels of a graph as our rules schedule them for an NVIDIA GPU, and as TVM's own default schedules do.

TVM's are `tvm.s_tir.dlight`'s, in the order in which TVM's own compilers apply them, lowered by TVM's default passes.
Both get the same kernels, with the same fusion and the same packed weights, and NVIDIA's compiler judges both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import Call, GlobalVar

from backends.cuda.compiler import Compiled, compiler
from backends.cuda.source import cuda_code, cuda_target
from backends.gpu.schedule import scheduler
from backends.gpu.tile_model import Estimate
from backends.gpu.tiles import GpuTiles
from backends.relax.build import Builder
from backends.relax.kernel import decode, inline
from backends.relax.loops import product
from backends.relax.runtime import learn_sizes
from backends.relax.size_formula import formula
from backends.relax.size_value import evaluate
from benchmarks.cuda_default_schedules import default_schedule
from benchmarks.gpu_traffic import Traffic, flat, seconds_of, traffic
from benchmarks.gpu_values import element_bytes
from optimizer.errors import CompileError
from optimizer.gpus import Gpu

__all__ = ["Kernels", "Scheduled", "kernels_of", "ours", "theirs"]

Array = npt.NDArray[Any]

_SMALL_BYTES = 1 << 16
_TENSOR_CORES = (".mma.", "mma.sync", "wgmma")


@dataclass(frozen=True)
class Kernels:
    """The kernels of a graph before any schedule.

    Attributes:
        functions: by name.
        scheduled: the same, by our rules.
        calls: how often a run calls each.
        estimates: of those that the model of the GPU knows.
        sizes: values of the symbolic sizes.
    """

    functions: Mapping[str, tirx.PrimFunc]
    scheduled: Mapping[str, tirx.PrimFunc]
    calls: Mapping[str, int]
    estimates: Mapping[str, Estimate]
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Scheduled:
    """A kernel with a schedule, compiled.

    Attributes:
        fails: why there is none; the rest says nothing then.
        registers: of a thread, the most of its launches.
        shared_bytes: of a block, alike.
        spilled_bytes: of all launches.
        tensor_cores: whether their instructions are in its PTX.
        moved: what it moves; `None` where that depends on data.
        seconds: `benchmarks.gpu_traffic.seconds_of`.
    """

    fails: str = ""
    registers: int = 0
    shared_bytes: int = 0
    spilled_bytes: int = 0
    tensor_cores: bool = False
    moved: Traffic | None = None
    seconds: float | None = None


@dataclass
class _Recorded:
    functions: dict[str, tirx.PrimFunc] = field(default_factory=dict)
    scheduled: dict[str, tirx.PrimFunc] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)

    def before(self) -> tvm.transform.Pass:
        """Keeps the kernels as the schedules find them."""

        @tvm.transform.module_pass(opt_level=0, name="KeepKernels")  # type: ignore[untyped-decorator]
        def keep(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
            self.functions.update(_kernels(module))
            return module

        return keep

    def ending(self, module: tvm.IRModule) -> dict[str, Any]:
        """Keeps what the schedules made, where the code would be generated."""
        self.scheduled.update(_kernels(module))
        for function in module.functions.values():
            if isinstance(function, relax.Function):
                bindings = [binding.value for block in function.body.blocks for binding in block.bindings]
                self.calls.update(
                    v.op.name_hint for v in bindings if isinstance(v, Call) and isinstance(v.op, GlobalVar)
                )
        return {}


def _kernels(module: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    return {v.name_hint: f for v, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}


def kernels_of(model: ir.Model, gpu: Gpu, inputs: Sequence[Any] | Mapping[str, Any] = ()) -> Kernels:
    """The kernels of an optimized graph.

    Args:
        model: the graph.
        gpu: what for.
        inputs: from which symbolic sizes are learned, in order or by name.
    """
    held = {name: v.const_value for name, v in model.graph.initializers.items() if v.const_value is not None}
    small = {
        name: np.array(tensor.numpy())
        for name, tensor in held.items()
        if tensor.dtype != ir.DataType.STRING and tensor.nbytes <= _SMALL_BYTES
    }
    recorded = _Recorded()
    refused: dict[str, str] = {}
    estimates: dict[str, Estimate] = {}
    passes = tvm.transform.Sequential([recorded.before(), scheduler(gpu, refused, estimates)])
    builder = Builder(model, small, set(held), passes, GpuTiles(gpu))
    plan = builder.build(tvm.target.Target("llvm"), recorded.ending, allow_fallback=False)
    sizes: dict[str, int] = {}
    for position, value in enumerate(plan.inputs if inputs else ()):
        given = inputs[value.name] if isinstance(inputs, Mapping) else inputs[position]
        learn_sizes(sizes, value, np.asarray(given))
    for name, how in plan.derived.items():
        sizes[name] = int(evaluate(how, sizes))
    called = {name: f for name, f in recorded.scheduled.items() if recorded.calls[name]}
    functions = {name: f for name, f in recorded.functions.items() if name in called}
    return Kernels(functions, called, recorded.calls, estimates, sizes)


def ours(kernels: Kernels, gpu: Gpu) -> dict[str, Scheduled]:
    """By our rules."""
    code = cuda_code(kernels.scheduled, gpu)
    compiled = compiler().compile(code.source, gpu.name)
    target = cuda_target(gpu)
    return {
        name: _judged(name, flat(function, target), [s.entry for s in code.starts[name]], compiled, kernels, gpu)
        for name, function in kernels.scheduled.items()
    }


def theirs(kernels: Kernels, names: Sequence[str], gpu: Gpu) -> dict[str, Scheduled]:
    """By TVM's default schedules, of the kernels with these names."""
    target = tvm.target.Target(
        {
            "kind": "cuda",
            "arch": gpu.name,
            "max_threads_per_block": gpu.threads,
            "max_shared_memory_per_block": 48 << 10,
            "thread_warp_size": gpu.lanes,
        }
    ).with_host(tvm.target.Target("llvm"))
    lowered: dict[str, tirx.PrimFunc] = {}
    result: dict[str, Scheduled] = {}
    devices: dict[str, dict[Any, tirx.PrimFunc]] = {}
    for name in names:
        try:
            lowered[name] = default_schedule(kernels.functions[name].with_attr("global_symbol", name), target)
            devices[name] = _device(name, lowered[name], target)
            _text(devices[name], target)
        except Exception as error:  # noqa: BLE001  (whatever TVM raises: it has no schedule or no code for the kernel)
            result[name] = Scheduled(fails=f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:150]}")
    working = [name for name in names if name not in result]
    for name, compiled in _compiled({name: devices[name] for name in working}, target, gpu).items():
        if isinstance(compiled, str):
            result[name] = Scheduled(fails=compiled)
            continue
        entries = [var.name_hint for var in devices[name]]
        dynamic = max(_dynamic_bytes(f) for f in devices[name].values())
        result[name] = _judged(name, lowered[name], entries, compiled, kernels, gpu, dynamic)
    return result


def _device(name: str, function: tirx.PrimFunc, target: tvm.target.Target) -> dict[Any, tirx.PrimFunc]:
    """The device's functions of a kernel, ready for the generator of code."""
    t = tirx.transform
    with target:
        module = t.SplitHostDevice()(tvm.IRModule({name: function}))
        device = tvm.IRModule({v: f for v, f in module.functions.items() if v.name_hint != name}, attrs=module.attrs)
        passes = [t.FP8StorageLegalize(), t.BF16StorageLegalize(), t.LowerWarpMemory(), t.StmtSimplify()]
        device = tvm.transform.Sequential([*passes, t.LowerIntrin()])(device)
    return dict(device.functions.items())


def _text(functions: Mapping[Any, tirx.PrimFunc], target: tvm.target.Target) -> str:
    module = tvm.IRModule(dict(functions))
    source: str = tvm.get_global_func("target.build.cuda")(module, target).inspect_source()
    return source


def _compiled(
    devices: Mapping[str, Mapping[Any, tirx.PrimFunc]], target: tvm.target.Target, gpu: Gpu
) -> dict[str, Compiled | str]:
    """All kernels in one program; if NVIDIA's compiler refuses that, each alone, to learn which."""
    if not devices:
        return {}
    try:
        together = {var: f for functions in devices.values() for var, f in functions.items()}
        whole = compiler().compile(_text(together, target), gpu.name)
        return dict.fromkeys(devices, whole)
    except CompileError as error:
        if len(devices) == 1:
            return dict.fromkeys(devices, f"nvcc: {_first_error(str(error))}")
    names = list(devices)
    half = len(names) // 2
    parts = [{name: devices[name] for name in some} for some in (names[:half], names[half:])]
    return {**_compiled(parts[0], target, gpu), **_compiled(parts[1], target, gpu)}


def _first_error(words: str) -> str:
    found = next((line for line in words.splitlines() if "error" in line), words)
    return found.rpartition("error")[2].strip(": ")[:120]


def _dynamic_bytes(function: tirx.PrimFunc) -> int:
    """Shared memory that a launch asks for, of which the compiler knows nothing."""
    found: list[Any] = []
    tvm_ffi.structural_walk(function.body, (tirx.AllocBuffer, found.append))
    buffers = [stmt.buffer for stmt in found if str(stmt.buffer.scope()) == "shared.dyn"]
    return sum(element_bytes(str(b.dtype)) * int(np.prod([int(d.value) for d in b.shape])) for b in buffers)


def _judged(
    name: str,
    function: tirx.PrimFunc,
    entries: Sequence[str],
    compiled: Compiled,
    kernels: Kernels,
    gpu: Gpu,
    dynamic_bytes: int = 0,
) -> Scheduled:
    """What the compiler says of a kernel, and what its schedule moves."""
    each = [compiled.kernels[entry] for entry in entries]
    resources = [{"registers": r.registers, "shared_bytes": r.shared_bytes + dynamic_bytes} for r in each]
    texts = _entries(compiled.ptx)
    tensor = any(word in texts.get(entry, "") for entry in entries for word in _TENSOR_CORES)
    try:
        moved: Traffic | None = traffic(function, resources, gpu, kernels.sizes)
    except (NotImplementedError, KeyError, TypeError):  # a length that only the run knows
        moved = None
    estimate = kernels.estimates.get(name)
    seconds = None
    if moved is not None and estimate is not None:
        flops = _flops(kernels.functions[name], kernels.sizes) if kernels.sizes else estimate.flops
        seconds = seconds_of(moved, flops, _peak(kernels.functions[name]) if tensor else "float32", gpu)
    return Scheduled(
        "",
        max((r["registers"] for r in resources), default=0),
        max((r["shared_bytes"] for r in resources), default=0),
        sum(r.spilled_bytes for r in each),
        tensor,
        moved,
        seconds,
    )


def _flops(function: tirx.PrimFunc, sizes: Mapping[str, int]) -> float:
    """Of a kernel with these symbolic sizes: two for each step of a sum."""
    kernel = decode(function)
    stages = [] if kernel is None else [stage for stage in inline(kernel).stages if stage.reduction]
    return sum(2.0 * float(evaluate(formula(product([a.extent for a in s.axes])), dict(sizes))) for s in stages)


def _peak(function: tirx.PrimFunc) -> str:
    types = {str(p.dtype) for p in function.params if isinstance(p.ty, tirx.BufferType)}
    return next((t for t in ("int8", "float16", "bfloat16") if t in types or f"u{t}" in types), "float16")


def _entries(ptx: str) -> dict[str, str]:
    """The text of each kernel."""
    parts = ptx.split(".entry ")[1:]
    return {part.partition("(")[0].strip(): part for part in parts}
