"""From fused kernels to loop nests: the list of rules, first match wins."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import s_tir, tirx

from backends.cpu import attention, byte_attention, conv2d, depthwise, four_bits, generic, matmul, winograd
from backends.cpu.bfloat16 import imported
from backends.cpu.byte_rounding import rounded_quickly
from backends.cpu.copies import copies
from backends.cpu.half import computed_in_float32
from backends.cpu.linker import TRIPLES
from backends.cpu.prediction import predict
from backends.cpu.probe import probe
from backends.cpu.small_loops import without_small_parallel_loops
from backends.relax.aliases import COPIES
from backends.relax.blocks import outer_parallel
from backends.relax.kernel import Kernel, decode, inline
from backends.relax.loops import Stmt
from backends.relax.plan import PROBE, Work
from optimizer.target import Cpu

Rule = Callable[[Kernel, Cpu], Stmt | None]
"""The loop nests of a kernel, or `None`: not mine."""

RULES: tuple[Rule, ...] = (
    matmul.lower,
    four_bits.lower,
    byte_attention.lower,
    attention.lower,
    conv2d.lower,
    winograd.lower,
    depthwise.lower,
    generic.lower,
)


def llvm_target(cpu: Cpu) -> tvm.target.Target:
    """TVM's name for the processor."""
    name = tvm.target.codegen.llvm_get_system_cpu() if cpu.name == "native" else cpu.name
    facts = {"kind": "llvm", "mcpu": name, "num-cores": cpu.cores}
    if cpu.foreign:
        facts["mtriple"] = TRIPLES[cpu.architecture]
    return tvm.target.Target(facts)


def scheduler(cpu: Cpu, work: dict[str, Work] | None = None) -> tvm.transform.Pass:
    """The pass that schedules every kernel of a module and adds the probe of the processor's peak.

    Args:
        cpu: the target.
        work: is told what each kernel has to do.
    """

    @tvm.transform.module_pass(opt_level=0, name="ScheduleForCpu")  # type: ignore[untyped-decorator]
    def schedule(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        for var, function in list(module.functions.items()):
            if isinstance(function, tirx.PrimFunc) and not (function.attrs and function.attrs.get("tirx.is_scheduled")):
                foretold = foretell(function, cpu) if work is not None else None
                if work is not None and foretold is not None:
                    work[var.name_hint] = foretold
                module.update_func(var, schedule_function(function, cpu))
        module.update_func(tvm.ir.GlobalVar(PROBE), probe(cpu))
        return module

    return schedule


def foretell(function: tirx.PrimFunc, cpu: Cpu) -> Work | None:
    """What a kernel has to do; `None` where its sizes are beyond formulas, or where it is a procedure."""
    kernel = decode(function)
    return None if kernel is None else predict(inline(kernel), cpu)


def schedule_function(function: tirx.PrimFunc, cpu: Cpu) -> tirx.PrimFunc:
    """One kernel by the first rule that takes it; what is no sequence of simple blocks runs in parallel outside."""
    kernel = decode(function)
    if kernel is None:
        return _outer_parallel(function)
    kernel = rounded_quickly(inline(kernel))
    for rule in RULES:
        body = rule(kernel, cpu)
        if body is not None:
            body = imported(computed_in_float32(body, native=cpu.bfloat16))
            done = _finished(tirx.PrimFunc(function.params, body, function.ret_type), function)
            ranges = copies(kernel)
            return done if ranges is None else done.with_attr(COPIES, ranges)
    raise RuntimeError(f"no rule takes the kernel {function}")


def _finished(new: tirx.PrimFunc, old: tirx.PrimFunc) -> tirx.PrimFunc:
    """The scheduled function with the attributes of the original."""
    for key, value in (old.attrs or {}).items():
        if key != "global_symbol":
            new = new.with_attr(key, value)
    return new.with_attr("tirx.is_scheduled", True).with_attr("tirx.noalias", True)


def _outer_parallel(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Blocks with control flow of their own (sorting, scatter...): their independent outer axes run in parallel."""
    if not isinstance(function.body, s_tir.SBlockRealize):
        return function
    if function.body.block.name_hint != "root":  # one procedure, which says itself what runs in parallel
        return _sparing(function, function)
    return _sparing(outer_parallel(function), function)


def _sparing(new: tirx.PrimFunc, old: tirx.PrimFunc) -> tirx.PrimFunc:
    body = without_small_parallel_loops(new.body)
    return _finished(tirx.PrimFunc(new.params, body, new.ret_type), old)
