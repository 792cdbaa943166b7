"""A graph in ONNX Runtime: for the oracle, for fallback partitions and for the "onnx" target."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.errors import ExecutionError, UnsupportedError
from optimizer.executable import Array

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["OrtSession", "runtime_errors", "runtime_operators"]

_OLDER_OPSET = 21
_BITS = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16)}


def runtime_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises when it cannot load or run a model."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.EPFail,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoModel,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
        RuntimeError,
        ValueError,
    )


@functools.cache
def runtime_operators() -> Mapping[str, frozenset[str]]:
    """The names of the operators that ONNX Runtime knows, by domain."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    known: dict[str, set[str]] = {}
    for schema in get_all_operator_schema():
        known.setdefault(schema.domain, set()).add(schema.name)
    return {domain: frozenset(names) for domain, names in known.items()}


class OrtSession:
    """A model that ONNX Runtime has loaded.

    The number of threads is fixed when a session is made; a run with another number makes a new one. Safe to use from
    several threads.

    Args:
        model: A serialized `ModelProto`, or the path of one with its external data beside it.
        files: External data by location, for a serialized model; kept as long as the session.
        optimize: Whether ONNX Runtime may rewrite the graph. The oracle says no.
        num_threads: For the first session.
        spinning: Whether idle threads wait actively. A fallback partition says no: they would slow the compiled code.
        as_written: Whether quantized layers are computed as they are written, and their weights stay as they are
            stored, whatever else is rewritten. ONNX Runtime 1.31 cannot rewrite them inside an `If`.

    Raises:
        UnsupportedError: ONNX Runtime cannot load the model.
    """

    def __init__(
        self,
        model: bytes | Path,
        files: Mapping[str, Array] | None = None,
        *,
        optimize: bool = True,
        num_threads: int = 1,
        spinning: bool = True,
        as_written: bool = False,
    ) -> None:
        self._as_written = as_written
        self._model = model
        self._files = dict(files or {})
        self._optimize = optimize
        self._spinning = spinning
        self._lock = threading.Lock()
        self._num_threads = num_threads
        self._session = self._load_as_it_can(num_threads)
        self.input_names = [value.name for value in self._session.get_inputs()]
        self.output_names = [value.name for value in self._session.get_outputs()]
        self._by_value = any(_is_exotic(v.type) for v in (*self._session.get_inputs(), *self._session.get_outputs()))

    @classmethod
    def from_model(
        cls,
        model: ir.Model,
        *,
        optimize: bool = True,
        num_threads: int = 1,
        spinning: bool = True,
        as_written: bool = False,
    ) -> OrtSession:
        """Load a model from memory; its weights are not serialized."""
        from optimizer.ir.weights import detach_weights

        data, files = detach_weights(model)
        return cls(data, files, optimize=optimize, num_threads=num_threads, spinning=spinning, as_written=as_written)

    def run(self, inputs: Sequence[Any], num_threads: int | None = None) -> list[Any]:
        """Compute all outputs.

        Args:
            inputs: One for each of `input_names`: an array, a list of arrays for a sequence, `None` for an absent
                optional.
            num_threads: As many as before when not given.

        Raises:
            ExecutionError: ONNX Runtime failed while it ran.
        """
        session = self._session_for(num_threads)
        feeds = dict(zip(self.input_names, inputs, strict=True))
        try:
            if self._by_value:
                return self._run_by_value(session, feeds)
            return list(session.run(None, feeds))
        except runtime_errors() as error:
            raise ExecutionError(f"ONNX Runtime failed while running: {_first_line(error)}") from error

    def profile(self, inputs: Sequence[Any], num_threads: int, repeats: int, folder: Path) -> Path:
        """Run in a session of its own with ONNX Runtime's profiler on; the trace is written into `folder`."""
        session = self._load(num_threads, profile=folder)
        feeds = dict(zip(self.input_names, inputs, strict=True))
        for _ in range(repeats):
            session.run(None, feeds)
        return Path(session.end_profiling())

    @property
    def model(self) -> bytes | Path:
        """The model as it was loaded."""
        return self._model

    def _session_for(self, num_threads: int | None) -> Any:
        with self._lock:
            if num_threads is not None and num_threads != self._num_threads:
                self._session = self._load(num_threads)
                self._num_threads = num_threads
            return self._session

    def _load_as_it_can(self, num_threads: int) -> Any:
        """Load the model; where ONNX Runtime lacks the newest version of an operator, as one of an older opset."""
        try:
            return self._load(num_threads)
        except UnsupportedError:
            older = at_older_opset(self._model) if isinstance(self._model, bytes) else None
            if older is None:
                raise
            self._model = older
            return self._load(num_threads)

    def _load(self, num_threads: int, profile: Path | None = None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = num_threads
        # Else its products with 4-bit weights round the activations to 8 bits, which the graph does not say.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if not self._optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False
        disabled = []
        if self._as_written:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            disabled.append("ConstantFolding")
        if not self._spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "trace")
        if self._files:
            buffers = list(self._files.values())
            sizes = [data.nbytes for data in self._files.values()]
            options.add_external_initializers_from_files_in_memory(list(self._files), buffers, sizes)
        source = str(self._model) if isinstance(self._model, Path) else self._model
        try:
            return onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
            )
        except runtime_errors() as error:
            raise UnsupportedError(f"ONNX Runtime cannot load this graph: {_first_line(error)}") from error

    def _run_by_value(self, session: Any, feeds: Mapping[str, Any]) -> list[Any]:
        values = {name: _to_value(array) for name, array in feeds.items()}
        return [_from_value(value) for value in session.run_with_ort_values(None, values)]


def at_older_opset(data: bytes) -> bytes | None:
    """A serialized model as one of opset 21, if each of its nodes is one; `None` otherwise.

    Opset 22 added bfloat16 to many operators and changed nothing else; ONNX Runtime has no kernels for some of these.
    """
    import onnx

    proto = onnx.ModelProto.FromString(data)
    default = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not default or default[0].version <= _OLDER_OPSET or proto.functions:
        return None
    if not all(_exists_at(node, _OLDER_OPSET) for node in proto.graph.node):
        return None
    default[0].version = _OLDER_OPSET
    older: bytes = proto.SerializeToString(deterministic=True)
    return older


def _exists_at(node: onnx.NodeProto, version: int) -> bool:
    from onnx import defs

    if node.domain not in ("", "ai.onnx"):
        return True
    try:
        schema = defs.get_schema(node.op_type, version, "")
    except defs.SchemaError:
        return False
    bodies = [attr.g for attr in node.attribute if attr.HasField("g")]
    return all(attr.name in schema.attributes for attr in node.attribute) and all(
        _exists_at(inner, version) for body in bodies for inner in body.node
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:400]


def _is_exotic(type_: str) -> bool:
    """Whether values of the type cannot be given to ONNX Runtime as numpy arrays."""
    return type_.startswith(("tensor(bfloat16", "tensor(float8", "tensor(int4", "tensor(uint4", "tensor(float4"))


def _to_value(array: Any) -> Any:
    import onnx_ir as ir
    from onnxruntime import OrtValue

    element_type = ir.DataType.from_numpy(array.dtype)
    # Not `isbuiltin`, which is 0 for the type of an array that came from another process.
    if array.dtype.type.__module__ == "numpy" and array.dtype.kind != "V":
        return OrtValue.ortvalue_from_numpy(array)
    bits = _BITS[array.dtype.itemsize]
    return OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(bits), int(element_type))


def _from_value(value: Any) -> Any:
    import onnx_ir as ir

    if not value.is_tensor() or not _is_exotic(value.data_type()):
        return value.numpy()
    dtype = ir.DataType(value.element_type()).numpy()
    size = value.tensor_size_in_bytes()
    raw = (ctypes.c_uint8 * size).from_address(value.data_ptr())
    return np.frombuffer(bytes(raw), dtype=dtype).reshape(value.shape()).copy()
