"""From fused kernels to launches: the list of rules, first match wins."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import tirx

from backends.cpu.half import computed_in_float32
from backends.gpu import attention, conv2d, depthwise, four_bits, generic, matmul
from backends.gpu.forecast import forecast
from backends.gpu.launch import Launch, scheduled
from backends.gpu.procedures import lower_procedure
from backends.gpu.tile_model import Estimate
from backends.relax.kernel import Kernel, decode, inline
from backends.relax.values import Refused
from optimizer.gpus import Gpu

__all__ = ["RULES", "Rule", "scheduler"]

Rule = Callable[[Kernel, Gpu], list[Launch] | None]
"""The launches of a kernel, or `None`: not mine."""

RULES: tuple[Rule, ...] = (matmul.lower, four_bits.lower, attention.lower, conv2d.lower, depthwise.lower, generic.lower)


def scheduler(gpu: Gpu, refused: dict[str, str], estimates: dict[str, Estimate] | None = None) -> tvm.transform.Pass:
    """The pass that schedules every kernel of a module.

    Args:
        gpu: the target.
        refused: is told which kernels no device can run, and why; these stay as they are.
        estimates: is told how long each kernel should take, of those that the model of the GPU knows.
    """

    @tvm.transform.module_pass(opt_level=0, name="ScheduleForGpu")  # type: ignore[untyped-decorator]
    def schedule(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        for var, function in list(module.functions.items()):
            if isinstance(function, tirx.PrimFunc) and not (function.attrs and function.attrs.get("tirx.is_scheduled")):
                kernel = None if estimates is None else decode(function)
                if estimates is not None and kernel is not None:
                    estimates[var.name_hint] = forecast(inline(kernel), gpu)
                try:
                    module.update_func(var, schedule_function(function, gpu))
                except Refused as refusal:
                    refused[var.name_hint] = refusal.reason
        return module

    return schedule


def schedule_function(function: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc:
    """One kernel by the first rule that takes it; one with control flow of its own by what is independent in it."""
    kernel = decode(function)
    if kernel is None:
        return _widened(lower_procedure(function, gpu), gpu)
    kernel = inline(kernel)
    for rule in RULES:
        launches = rule(kernel, gpu)
        if launches is not None:
            return _widened(scheduled(function, launches), gpu)
    raise RuntimeError(f"no rule takes the kernel {function}")


def _widened(function: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc:
    """Without arithmetic in half precision, which not every OpenCL device has."""
    if gpu.kind != "opencl":
        return function
    done = tirx.PrimFunc(function.params, computed_in_float32(function.body), function.ret_type)
    for key, value in (function.attrs or {}).items():
        done = done.with_attr(key, value)
    return done
