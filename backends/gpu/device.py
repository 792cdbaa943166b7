"""From scheduled kernels to the text of a device's program, and to what the host must pass and start.

TVM splits a function with bound threads into one device function for each launch, and a host function that calls
them. The host function is only read here: its calls say which buffers and sizes each device function takes, and how
many blocks there are.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Call, TensorLoad

from backends.gpu.dialect import helpers, opencl_functions, opencl_halves, opencl_literals
from backends.gpu.names import with_identifiers
from backends.relax.packing import element_type
from backends.relax.size_formula import formula
from backends.relax.size_value import Formula

__all__ = ["FAULTS", "DeviceCode", "Parameter", "Start", "device_code", "opencl_target"]

FAULTS = "tersor_faults"
"""The name of the buffer: one int32, 0 or the number of the demand that was not met, counted from 1."""

_INDEX_BITS = 32


@dataclass(frozen=True)
class Parameter:
    """What a device function takes: a buffer, or a size.

    Attributes:
        position: of the kernel's parameter; -1 for what is none.
        scratch: the position among the kernel's scratch buffers; -1 for what is none.
        faults: whether it is where the kernel leaves the number of a demand that is not met.
        size: the size, over the kernel's own symbolic sizes.
        dtype: of the buffer's elements, or of the size.
    """

    position: int = -1
    scratch: int = -1
    faults: bool = False
    size: Formula | None = None
    dtype: str = ""


@dataclass(frozen=True)
class Start:
    """The call of one device function.

    Attributes:
        entry: its name in the program.
        parameters: what it takes, in order.
        grid: blocks along x, y and z, over the kernel's own symbolic sizes.
        block: threads of a block.
        shared_bytes: memory that a block's threads share.
    """

    entry: str
    parameters: tuple[Parameter, ...]
    grid: tuple[Formula, Formula, Formula]
    block: tuple[int, int, int]
    shared_bytes: int


@dataclass(frozen=True)
class DeviceCode:
    """All kernels of a module.

    Attributes:
        source: the program, as text.
        starts: kernel -> the device functions that it calls, in order.
        scratch: kernel -> bytes of the buffers that one launch writes for the next, over the kernel's symbolic sizes.
        extensions: of the language, that the source uses.
    """

    source: str
    starts: Mapping[str, tuple[Start, ...]]
    scratch: Mapping[str, tuple[Formula, ...]]
    extensions: list[str]


def opencl_target(threads: int, shared_bytes: int) -> tvm.target.Target:
    """TVM's name for an OpenCL device."""
    facts = {"kind": "opencl", "max_num_threads": threads, "max_shared_memory_per_block": shared_bytes}
    return tvm.target.Target(facts).with_host(tvm.target.Target("llvm"))


def device_code(kernels: Mapping[str, tirx.PrimFunc], target: tvm.target.Target) -> DeviceCode:
    """Generate code for scheduled kernels (see `backends.gpu.launch.scheduled`).

    Args:
        kernels: by name.
        target: what for.
    """
    kernels = {name: _named_apart(f) for name, f in kernels.items()}
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in kernels.items()})
    scratch = {name: _scratch(f) for name, f in kernels.items()}
    t = tirx.transform
    module = t.BindTarget(target)(module)
    module = tvm.transform.Sequential(
        [
            t.FlattenBuffer(),
            t.BF16ComputeLegalize(),
            t.NarrowDataType(_INDEX_BITS),
            t.VectorizeLoop(True),
            t.UnrollLoop(),
            t.StmtSimplify(),
            s_tir.transform.RewriteUnsafeSelect(),
            t.FP8ComputeLegalize(),
            t.VerifyMemory(),
            t.AnnotateEntryFunc(),
            t.SplitHostDevice(),
        ]
    )(module)
    hosts = {var.name_hint: f for var, f in module.functions.items() if var.name_hint in kernels}
    devices = {var: f for var, f in module.functions.items() if var.name_hint not in kernels}
    device = with_identifiers(tvm.IRModule(devices, attrs=module.attrs))
    if target.kind.name == "opencl":
        device = opencl_functions(opencl_halves(device))
    device = tvm.transform.Sequential(
        [t.FP8StorageLegalize(), t.BF16StorageLegalize(), t.LowerWarpMemory(), t.StmtSimplify(), t.LowerIntrin()]
    )(device)
    if target.kind.name == "opencl":
        device = opencl_literals(device)
    shared = {var.name_hint: _shared_bytes(f) for var, f in device.functions.items()}
    starts = {name: _starts(hosts[name], original, scratch[name], shared) for name, original in kernels.items()}
    source = _source(device, target) if devices else ""
    sizes = {name: tuple(size for _, _, size in found) for name, found in scratch.items()}
    return DeviceCode(source, starts, sizes, [e for word, e in _EXTENSIONS.items() if re.search(word, source)])


_EXTENSIONS = {r"\bdouble\d*\b": "cl_khr_fp64"}


def _named_apart(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with a name of its own for each buffer outside of the launches: the host's calls tell them by it."""
    body = function.body.seq if isinstance(function.body, tirx.SeqStmt) else [function.body]
    outside = [p for p in function.params if _is_buffer(p)]
    outside += [stmt.buffer for stmt in body if isinstance(stmt, tirx.AllocBuffer)]
    names: set[str] = set()
    renamed: dict[tirx.Var, tirx.Var] = {}
    for buffer in outside:
        name = next(n for i in itertools.count() if (n := f"{buffer.name}_{i}" if i else str(buffer.name)) not in names)
        names.add(name)
        if name != str(buffer.name):
            renamed[buffer] = tirx.decl_buffer(list(buffer.shape), str(buffer.dtype), name)
    if not renamed:
        return function
    own = tvm_ffi.structural_map(
        function.body,
        [
            (TensorLoad, lambda n: tirx.BufferLoad(renamed[n.source], list(n.indices)) if n.source in renamed else n),
            (
                tirx.BufferStore,
                lambda n: tirx.BufferStore(renamed[n.buffer], n.value, list(n.indices)) if n.buffer in renamed else n,
            ),
            (tirx.AllocBuffer, lambda n: tirx.AllocBuffer(renamed[n.buffer]) if n.buffer in renamed else n),
        ],
    )
    done = tirx.PrimFunc([renamed.get(p, p) for p in function.params], own, function.ret_type)
    for key, value in (function.attrs or {}).items():
        done = done.with_attr(key, value)
    return done


def _scratch(function: tirx.PrimFunc) -> list[tuple[str, str, Formula]]:
    """The names, types and bytes of the buffers that stand before the launches."""
    body = function.body.seq if isinstance(function.body, tirx.SeqStmt) else [function.body]
    buffers = [stmt.buffer for stmt in body if isinstance(stmt, tirx.AllocBuffer)]
    return [(str(b.name), str(b.dtype), _bytes(b)) for b in buffers if str(b.name) != FAULTS]


def _bytes(buffer: tirx.Var) -> Formula:
    size: Formula = element_type(str(buffer.dtype)).itemsize
    for dim in buffer.shape:
        extent = formula(dim)
        size = size * extent if isinstance(size, int) and isinstance(extent, int) else ["*", size, extent]
    return size


def _starts(
    host: tirx.PrimFunc,
    original: tirx.PrimFunc,
    scratch: Sequence[tuple[str, str, Formula]],
    shared: Mapping[str, int],
) -> tuple[Start, ...]:
    buffers: dict[str, Parameter] = {
        str(p.name): Parameter(position=i, dtype=str(p.dtype)) for i, p in enumerate(original.params) if _is_buffer(p)
    }
    buffers |= {name: Parameter(scratch=i, dtype=dtype) for i, (name, dtype, _) in enumerate(scratch)}
    buffers[FAULTS] = Parameter(faults=True, dtype="int32")
    calls: list[Call] = []
    tvm_ffi.structural_walk(host.body, (Call, calls.append))
    return tuple(_start(call, buffers, shared) for call in calls if _name(call) == "call_ffi_kernel")


def _is_buffer(parameter: tirx.Var) -> bool:
    return isinstance(parameter.ty, tirx.BufferType)


def _start(call: Call, buffers: Mapping[str, Parameter], shared: Mapping[str, int]) -> Start:
    entry = str(call.args[0].value)
    tags = [str(tag) for tag in call.attrs["launch_params"]]
    given = list(call.args[1:])
    extents = dict(zip(tags, given[len(given) - len(tags) :], strict=True))
    parameters = [
        buffers[str(arg.args[0].name)]
        if isinstance(arg, Call) and _name(arg) == "buffer_data"
        else Parameter(size=formula(arg), dtype=str(arg.expr_ty()))
        for arg in given[: len(given) - len(tags)]
    ]
    grid = [formula(extents[f"blockIdx.{axis}"]) if f"blockIdx.{axis}" in extents else 1 for axis in "xyz"]
    block = [int(extents[f"threadIdx.{axis}"].value) if f"threadIdx.{axis}" in extents else 1 for axis in "xyz"]
    return Start(
        entry, tuple(parameters), (grid[0], grid[1], grid[2]), (block[0], block[1], block[2]), shared.get(entry, 0)
    )


def _name(call: Call) -> str:
    return str(getattr(call.op, "name", "")).rpartition(".")[2]


def _shared_bytes(function: tirx.PrimFunc) -> int:
    found: list[tirx.Stmt] = []
    tvm_ffi.structural_walk(function.body, (tirx.AllocBuffer, found.append))
    sizes = [_bytes(stmt.buffer) for stmt in found if str(stmt.buffer.scope()).startswith("shared")]
    return sum(size for size in sizes if isinstance(size, int))


def _source(module: tvm.IRModule, target: tvm.target.Target) -> str:
    generate = tvm.get_global_func(f"target.build.{target.kind.name}")
    text: str = generate(module, target).inspect_source()
    return helpers(text) + with_offsets(text) if target.kind.name == "opencl" else text


_DEFINITION = re.compile(r"^__kernel void (\w+)\((.*)\) \{$", re.MULTILINE)
_DECLARATION = re.compile(r"^__kernel void \w+\(.*\);\n", re.MULTILINE)
_PRAGMAS = re.compile(r"^#ifdef cl_khr_fp16\n.*?^#endif\n", re.MULTILINE | re.DOTALL)
_POINTER = re.compile(r"(__global [\w ]+\*) restrict (\w+)")


def with_offsets(source: str) -> str:
    """The program with an offset, in elements, behind each pointer that a kernel takes.

    A buffer of OpenCL can be cut only at multiples of what the device says (up to 512 bytes); tensors in an arena begin
    at any multiple of 64.
    """

    def definition(found: re.Match[str]) -> str:
        name, parameters = found.groups()
        pointers = _POINTER.findall(parameters)
        taken = _POINTER.sub(r"\1 \2_base, long \2_offset", parameters)
        lines = [f"  {kind} restrict {pointer} = {pointer}_base + {pointer}_offset;" for kind, pointer in pointers]
        return "\n".join([f"__kernel void {name}({taken}) {{", *lines])

    return _DEFINITION.sub(definition, _DECLARATION.sub("", _PRAGMAS.sub("", source)))
