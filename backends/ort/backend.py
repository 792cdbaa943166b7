"""ONNX Runtime behind the contract of a backend."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.base import BackendInfo, Progress
from optimizer.errors import ArtifactError, UnsupportedError
from optimizer.executable import Array, Executable, KernelTime, Part, TensorSpec
from optimizer.onnx_limits import STANDARD, OnnxLimits
from optimizer.ort_session import OrtSession, runtime_operators
from optimizer.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["OrtBackend", "OrtExecutable"]

_MODEL = "model.onnx"


class OrtExecutable:
    """A graph in ONNX Runtime."""

    backend = "onnx"

    def __init__(
        self,
        session: OrtSession,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        parts: Mapping[str, Part],
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.notes: list[str] = []
        self.memory = None  # its arena is its own
        self._session = session
        self._parts = dict(parts)

    def run(self, inputs: Sequence[Array], num_threads: int) -> list[Array]:
        """Compute the outputs."""
        return self._session.run(inputs, num_threads)

    def profile(self, inputs: Sequence[Array], num_threads: int, repeats: int) -> list[KernelTime]:
        """Time of each node, from ONNX Runtime's own profiler, on average over `repeats` runs."""
        with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
            trace = self._session.profile(inputs, num_threads, repeats, Path(folder))
            events = json.loads(trace.read_text(encoding="utf-8"))
        return _kernel_times(events, repeats)

    def parts(self) -> dict[str, Part]:
        """The model and its weights."""
        return dict(self._parts)

    def manifest(self) -> dict[str, object]:
        """The signature."""
        return {"inputs": [asdict(spec) for spec in self.inputs], "outputs": [asdict(spec) for spec in self.outputs]}


class OrtBackend:
    """Hands the optimized graph to ONNX Runtime."""

    name = "onnx"
    precisions = ("float32", "float16", "int8", "int4")  # ONNX Runtime has next to no kernels for bfloat16 on the CPU
    mappable: tuple[str, ...] = ()

    def prewarm(self) -> None:
        """Nothing takes time to start."""

    def rest(self) -> None:
        """Nothing holds memory."""

    def compile(
        self, model: ir.Model, target: Target, *, fallback: str, progress: Progress | None = None
    ) -> Executable:
        """Load the graph; its weights are shared, not serialized. Nothing falls back: all of it is ONNX Runtime's.

        Raises:
            UnsupportedError: ONNX Runtime cannot load the graph, or it holds what the target may not.
        """
        from optimizer.ir.specs import specs_of
        from optimizer.ir.weights import detach_weights

        del fallback
        _check_limits(model, target.onnx)
        if progress is not None:
            progress("loading the graph into ONNX Runtime")
        data, files = detach_weights(model)
        session = OrtSession(data, files)
        parts: dict[str, Part] = {_MODEL: session.model, **files}
        return OrtExecutable(session, specs_of(model.graph.inputs), specs_of(model.graph.outputs), parts)

    def load(self, parts: Mapping[str, Path | Array], manifest: Mapping[str, object]) -> Executable:
        """Load a saved graph from disk, where ONNX Runtime maps its weights.

        Raises:
            ArtifactError: The manifest or the parts are not those of this backend.
        """
        model = parts.get(_MODEL)
        if not isinstance(model, Path):
            raise ArtifactError(f"the saved model lacks its part {_MODEL!r}")
        inputs, outputs = (TensorSpec.from_json(manifest.get(key)) for key in ("inputs", "outputs"))
        return OrtExecutable(OrtSession(model), inputs, outputs, parts)

    def describe(self) -> BackendInfo:
        """What the backend needs and can do."""
        names = sorted(runtime_operators().get("", ()))
        return BackendInfo(
            name=self.name,
            summary="optimized ONNX only, run by ONNX Runtime",
            needs="onnxruntime",
            operators=len(names),
            precisions=self.precisions,
            proof="ONNX Runtime without its graph optimizations, on seeded inputs",
            operator_names=tuple(names),
        )


def _check_limits(model: ir.Model, limits: OnnxLimits) -> None:
    """Passes of the caller's own may have put in what the runtime does not know, and so may a conversion."""
    from optimizer.ir.provenance import label
    from optimizer.ir.shapes import Shapes
    from optimizer.ir.walk import all_nodes
    from passes.lowering.fit import misfit

    shapes = None if limits.opset is None else Shapes(model)
    for node in all_nodes(model):
        domain = node.domain or STANDARD
        if limits.domains is not None and domain not in limits.domains and node.op_identifier() not in model.functions:
            raise UnsupportedError(
                f"{node.op_type} is an operator of the domain {domain!r}, and the target only allows "
                f"{', '.join(limits.domains)}: add +{domain} to the target",
                node=label(node),
            )
        reason = misfit(node, limits.opset, shapes) if shapes is not None and limits.opset and not node.domain else None
        if reason is not None:
            raise UnsupportedError(
                f"{node.op_type} is not of opset {limits.opset} ({reason}): ask for a later one", node=label(node)
            )


def _kernel_times(events: Sequence[Mapping[str, Any]], repeats: int) -> list[KernelTime]:
    """Sum the profiler's `..._kernel_time` events (microseconds) by node."""
    seconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            node = name.removesuffix("_kernel_time")
            seconds[node] = seconds.get(node, 0.0) + float(event["dur"]) / 1e6
            calls[node] = calls.get(node, 0) + 1
    return [KernelTime(node, (node,), total / repeats, calls[node] // repeats) for node, total in seconds.items()]
