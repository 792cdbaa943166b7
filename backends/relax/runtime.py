"""Run a plan: TVM's runtime library and, for fallback partitions, ONNX Runtime; no compiler, no torch."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.relax.packing import ALIGNMENT, USER_TYPE, carried, element_type
from backends.relax.plan import RELAX, Check, Plan, Step, Value
from backends.relax.recent import Recent
from backends.relax.size_value import evaluate, with_derived
from backends.relax.storage import Storage
from backends.relax.without_torch import torch_kept_out
from optimizer.errors import ExecutionError
from optimizer.memory import give_back_free_memory

Array = npt.NDArray[Any]
Partition = Callable[[Sequence[Any]], list[Any]]
"""A fallback partition: arrays in, arrays out."""
Hook = Callable[..., int]

_CPU = 1
_POOLED = 2
_NO_AFFINITY = -1


@cache
def ffi() -> Any:
    """TVM's foreign function interface with the runtime library loaded."""
    os.environ.setdefault("TVM_BIND_THREADS", "0")  # never pin the threads of somebody else's process
    os.environ.setdefault(
        "TVM_NUM_THREADS", str(os.cpu_count() or 1)
    )  # TVM's own default leaves out half of the virtual cores
    with torch_kept_out():
        import tvm_ffi
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise ImportError("apache-tvm is not installed; install it to run compiled models")
    ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)
    return tvm_ffi


_threads = threading.local()


def use_threads(count: int) -> None:
    """Set the number of threads of TVM's pool; each calling thread has a pool of its own."""
    if getattr(_threads, "count", None) != count:
        ffi().get_global_func("runtime.config_threadpool")(_NO_AFFINITY, count)
        _threads.count = count


def as_tensor(array: Array) -> Any:
    """An aligned array as TVM's tensor; DLPack knows no ml_dtypes: narrow ones go as bytes, bfloat16 is renamed."""
    tvm_ffi = ffi()
    bits = carried(array)
    if bits.size == 0:  # numpy's strides are not what TVM takes for compact
        return _renamed(tvm_ffi.from_dlpack(np.empty(0, f"u{bits.itemsize}")), bits.shape, str(bits.dtype))
    if bits.dtype.isbuiltin != USER_TYPE:
        return tvm_ffi.from_dlpack(bits, require_alignment=ALIGNMENT)
    tensor = tvm_ffi.from_dlpack(bits.view(np.uint16), require_alignment=ALIGNMENT)
    return _renamed(tensor, bits.shape, str(bits.dtype))


def as_array(tensor: Any, element: np.dtype[Any]) -> Array:
    """TVM's tensor as an array of that type, sharing its memory."""
    if element.isbuiltin == USER_TYPE and str(tensor.dtype) == element.name:
        tensor = _renamed(tensor, tensor.shape, "uint16")
    array = np.from_dlpack(tensor)
    return array if array.dtype == element else array.view(element)


def _renamed(tensor: Any, shape: Sequence[int], dtype: str) -> Any:
    """The same memory as elements of another type of the same size."""
    tvm_ffi = ffi()
    view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    return view(tensor, tvm_ffi.Shape(tuple(shape)), tvm_ffi.dtype(dtype), 0)


def _tuple(arrays: Sequence[Array]) -> Any:
    tensors = {id(array): as_tensor(array) for array in {id(array): array for array in arrays}.values()}
    return ffi().convert(tuple(tensors[id(array)] for array in arrays))


class Machine:
    """The compiled module and its weights.

    Args:
        library: the native module.
        plan: what it was compiled from.
        weights: the weight buffer (aligned).
    """

    def __init__(self, library: Path | None, plan: Plan, weights: Array) -> None:
        self.plan = plan
        self.weights = weights
        self._lock = threading.Lock()
        self._machine: Any = None if library is None else self._load(library)
        self._arguments = [self._weight_tuple(step) for step in plan.steps]
        compiled = [step.outputs if step.engine == RELAX else [] for step in plan.steps]
        leaving = {value.name for value in plan.outputs}
        self._results = [[(element_type(v.dtype), v.name in leaving) for v in outputs] for outputs in compiled]
        self._owned = {value.name for outputs in compiled for value in outputs}
        self._symbolic = {
            v.name for step in plan.steps for v in step.outputs if any(isinstance(d, str) for d in v.shape or ())
        }
        self._weights_span = _span(weights.ctypes.data, weights.nbytes)
        self._last_use = last_uses(plan)
        self._latest: list[Any] = [None] * len(plan.steps)  # the sizes of the last run, all of them, and their shape
        self._recent = [Recent[Any]() for _ in plan.steps]
        self._storage = Storage([step.memory for step in plan.steps], _tuple)
        self.sizes: dict[str, int] | None = None
        """The symbolic sizes of the last run."""

    def run(
        self, inputs: Sequence[Array], num_threads: int, partitions: Mapping[str, Partition], hook: Hook | None = None
    ) -> list[Any]:
        """Compute the outputs of the graph.

        Args:
            inputs: one array for each input of the plan.
            num_threads: size of the pools.
            partitions: the fallback partitions, by entry.
            hook: called as `hook(function, name, before, result, *args)` around each kernel and each partition.
        """
        environment: dict[str, Any] = {v.name: a for v, a in zip(self.plan.inputs, inputs, strict=True)}
        sizes: dict[str, int] = {}
        for value, array in zip(self.plan.inputs, inputs, strict=True):
            learn_sizes(sizes, value, array)
        with self._lock, self._instrumented(hook):
            if self._machine is not None:
                use_threads(num_threads)
            for index, step in enumerate(self.plan.steps):
                taken = [environment[v.name] for v in step.inputs]
                if step.engine == RELAX:
                    results = self._run_compiled(index, step, taken, sizes)
                else:
                    results = run_partition(step, taken, partitions[step.entry], hook)
                for value, array in zip(step.outputs, results, strict=True):
                    environment[value.name] = array
                    if value.name in self._symbolic:
                        learn_sizes(sizes, value, array)
                for name in self._last_use[index]:
                    environment.pop(name, None)
            first, self.sizes = self.sizes is None, sizes
        if first:  # kernels' workspaces have grown to their sizes: what was too small is free, but still held
            give_back_free_memory()
        return [
            environment[v.name] if v.name in self._owned else self._own(environment[v.name], inputs)
            for v in self.plan.outputs
        ]

    @property
    def arena_bytes(self) -> int:
        """Length of the arena; 0 before the first run."""
        return self._storage.bytes

    @contextmanager
    def _instrumented(self, hook: Hook | None) -> Iterator[None]:
        if hook is None or self._machine is None:
            yield
            return
        self._machine["set_instrument"](hook)
        try:
            yield
        finally:
            self._machine["set_instrument"](None)

    def _run_compiled(self, index: int, step: Step, inputs: list[Any], sizes: Mapping[str, int]) -> list[Any]:
        if self._latest[index] is None or self._latest[index][0] != sizes:
            if self._latest[index] is not None:  # outputs of the sizes before are wanted no more
                ffi().get_global_func("vm.builtin.memory_manager.clear")()
            found = self._recent[index].get(sizes)
            self._latest[index] = self._recent[index].keep(sizes, self._sized(step, sizes)) if found is None else found
        _, known, shape = self._latest[index]
        memory = self._storage.tensors(index, known)
        held = [self._storage.aligned(index, position, a) for position, a in enumerate(inputs)]
        arguments = [as_tensor(a) for a in held]
        tensors = self._machine[step.entry](*arguments, shape, self._arguments[index], memory)
        lent = [self._weights_span, *(_span(t.data_ptr(), a.nbytes) for t, a in zip(arguments, held, strict=True))]
        results = []
        for tensor, (element, leaves) in zip(tensors, self._results[index], strict=True):
            array = as_array(tensor, element)
            results.append(array.copy() if leaves and _lies_in(lent, tensor.data_ptr()) else array)
        return results

    def _sized(self, step: Step, sizes: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int], Any]:
        """The sizes, those that follow from them, and all as the compiled function takes them."""
        known = self._known(step, sizes)
        return dict(sizes), known, ffi().Shape(tuple(known.get(name, 1) for name in step.sizes))

    def _known(self, step: Step, sizes: Mapping[str, int]) -> dict[str, int]:
        """All sizes that follow from these, once they are found to fit."""
        known = with_derived(self.plan.derived, sizes)
        for check in step.checks:
            demand(check, known)
        return known

    def _load(self, library: Path) -> Any:
        module = ffi().load_module(str(library))
        machine = module["vm_load_executable"]()
        machine["vm_initialization"](_CPU, 0, _POOLED)
        return machine

    def _weight_tuple(self, step: Step) -> Any:
        if step.engine != RELAX:
            return None
        arrays = []
        for position in step.weights:
            spec = self.plan.weights[position]
            size = int(np.prod(spec.shape, dtype=np.int64)) * element_type(spec.dtype).itemsize
            flat = self.weights[spec.offset : spec.offset + size]
            arrays.append(flat.view(element_type(spec.dtype)).reshape(spec.shape))
        return _tuple(arrays)

    def _own(self, output: Any, inputs: Sequence[Array]) -> Any:
        """A copy of an output that shares memory with an input or a weight; the output itself otherwise."""
        if not isinstance(output, np.ndarray):
            return output
        borrowed = [*inputs, self.weights]
        shared = any(isinstance(a, np.ndarray) and np.may_share_memory(output, a) for a in borrowed)
        return output.copy() if shared else output


def _span(address: int, nbytes: int) -> range:
    """Addresses."""
    return range(address, address + nbytes)


def _lies_in(spans: Sequence[range], address: int) -> bool:
    for span in spans:  # noqa: SIM110 (once an output of every run, and `any` takes three times as long)
        if address in span:
            return True
    return False


def run_partition(step: Step, inputs: list[Any], partition: Partition, hook: Hook | None) -> list[Any]:
    """A fallback partition, with the hook around it."""
    if hook is not None:
        hook(None, step.entry, True, None)
    results = partition(inputs)
    if hook is not None:
        hook(None, step.entry, False, None)
    return results


def learn_sizes(sizes: dict[str, int], value: Value, array: Any) -> None:
    """Enter the symbolic sizes that an array shows for the first time."""
    found = getattr(array, "shape", None)  # a list of arrays has none
    if value.shape is not None and found is not None:
        for declared, actual in zip(value.shape, found, strict=False):
            if isinstance(declared, str):
                sizes.setdefault(declared, int(actual))


def demand(check: Check, sizes: Mapping[str, int]) -> None:
    """Hold two sizes against each other.

    Raises:
        ExecutionError: they are not the same.
    """
    left, right = evaluate(check.left, sizes), evaluate(check.right, sizes)
    if left != right and not (check.or_one and left == 1):
        raise ExecutionError(
            f"node {check.node!r}: {check.what}: {left} and {right} are not the same; give inputs whose sizes fit"
        )


def last_uses(plan: Plan) -> list[list[str]]:
    """For each step, the values that no later step reads."""
    kept = {v.name for v in plan.outputs}
    seen: set[str] = set()
    result: list[list[str]] = []
    for step in reversed(plan.steps):
        names = {v.name for v in (*step.inputs, *step.outputs)} - kept - seen
        seen |= names
        result.append(sorted(names))
    return result[::-1]
