"""From a graph to a plan and a module. Runs in the compile process; the only place that drives TVM's compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import tvm
from tvm import relax, tirx

from backends.relax.attribution import Attribution, label
from backends.relax.emitter import Emitter
from backends.relax.forms import dtype_name, element_name
from backends.relax.kernel_order import reordered
from backends.relax.learned import learned_scalars
from backends.relax.memory import Memory, Workspace
from backends.relax.memory_plan import MemoryPlan, plan_memory
from backends.relax.partition import Segment, captured, segments
from backends.relax.plan import ONNXRUNTIME, RELAX, Plan, Step, Value, WeightSpec
from backends.relax.size_formula import formula
from backends.relax.sums import sums_apart
from backends.relax.values import Packed, PanelChoice, Refused, Result, static_int
from backends.relax.walk import emit_nodes
from optimizer.memory import give_back_free_memory

_T = relax.transform

_AS_KERNELS = tvm.transform.Sequential(
    [
        _T.CanonicalizeBindings(),
        _T.DeadCodeElimination(),  # what nobody reads would be a reader in the way of a fusion
        _T.EliminateCommonSubexpr(),
        _T.LegalizeOps(skip_ops=["relax.reshape"]),  # it stays a view
        _T.AnnotateTIROpPattern(),
    ]
)
_BEFORE_SCHEDULES = (_T.DeadCodeElimination(), _T.BundleModelParams(), _T.RewriteDataflowReshape())
_AFTER_SCHEDULES = (_T.ToNonDataflow(), _T.RemovePurityChecking(), _T.CallTIRRewrite())

Ending = Callable[[tvm.IRModule], dict[str, list[Workspace]]]
"""Turns a module whose memory is planned into code; gives what each kernel takes for itself while it runs."""


@dataclass(frozen=True)
class Compilation:
    """What is known of a module once it is compiled.

    Attributes:
        kernels: the nodes that each kernel computes.
        memories: what each function needs besides its weights.
        workspaces: what each kernel takes for itself.
    """

    kernels: dict[str, list[str]]
    memories: dict[str, Memory]
    workspaces: dict[str, list[Workspace]]


class RefusedNodes(Exception):
    """`fallback="error"`, and some nodes have no emitter: node name -> reason."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(f"{len(reasons)} nodes refused")
        self.reasons = reasons


class BeyondTarget(Exception):
    """Some kernels cannot be said in the target's language: kernel -> reason, and the same of their nodes."""

    def __init__(self, kernels: dict[str, str]) -> None:
        super().__init__(f"{len(kernels)} kernels refused: {kernels}")
        self.kernels = kernels
        self.nodes: dict[str, str] = {}


class Builder:
    """Compiles one graph.

    Args:
        model: the graph; its initializers stand among the inputs, with their types.
        constants: values of the small initializers.
        weights: the names of all initializers.
        schedule: turns the fused kernels of a module into scheduled ones, for the target.
        tiles: how the target wants its weights packed.
    """

    def __init__(
        self,
        model: ir.Model,
        constants: Mapping[str, np.ndarray],
        weights: set[str],
        schedule: tvm.transform.Pass,
        tiles: PanelChoice,
    ) -> None:
        self.graph = model.graph
        self.constants = constants
        self.weights = weights
        self.schedule = schedule
        self.tiles = tiles
        self.learned = learned_scalars(model.graph, constants)
        self.sizes: dict[str, tirx.Var] = {}
        self.definitions: dict[tirx.Var, tirx.Expr] = {}
        self.reasons: dict[ir.Node, str] = {}
        self.known: dict[ir.Value, Result] = {}
        self.table: dict[Packed, int] = {}

    def build(
        self,
        target: tvm.target.Target,
        ending: Ending,
        *,
        allow_fallback: bool,
        refused: Mapping[str, str] = MappingProxyType({}),
    ) -> Plan:
        """Generate code and give the plan.

        Args:
            target: what for.
            ending: generates the code.
            allow_fallback: whether nodes without an emitter may run elsewhere.
            refused: nodes whose kernels are beyond the target's language, and why.

        Raises:
            RefusedNodes: a node has no emitter and `allow_fallback` is false.
            BeyondTarget: a node has one, but code for its kernel cannot be generated.
        """
        nodes = list(self.graph)
        self._probe(nodes, refused)
        if self.reasons and not allow_fallback:
            raise RefusedNodes({n.name or n.op_type: f"{n.op_type}: {why}" for n, why in self.reasons.items()})
        module = relax.BlockBuilder()
        steps = self._emit(module, segments(nodes, set(self.reasons), self.weights))
        kernels = {s.entry: s.nodes for s in steps if s.engine == ONNXRUNTIME}
        compiled = {s.entry: s.nodes for s in steps if s.engine == RELAX}
        workspaces: dict[str, list[Workspace]] = {}
        if compiled:
            compilation = self._compile(module.get(), target, ending, Attribution(compiled))
            kernels |= compilation.kernels
            workspaces = compilation.workspaces
            for step in steps:
                step.memory = compilation.memories.get(step.entry, step.memory)
        weights = [
            WeightSpec(p.source, p.transform, dict(p.options), list(p.shape), p.dtype)
            for p in self.table  # insertion order
        ]
        return Plan(
            [_value(v) for v in self.graph.inputs if v.name not in self.weights],
            [_value(v) for v in self.graph.outputs],
            steps,
            weights,
            kernels=kernels,
            workspaces=workspaces,
            derived={v.name: formula(e) for v, e in self.definitions.items()},
        )

    def _compile(
        self, module: tvm.IRModule, target: tvm.target.Target, ending: Ending, attribution: Attribution
    ) -> Compilation:
        """Fuse, schedule, plan the memory, generate code."""
        with target:
            module = _AS_KERNELS(module)
            attribution.emitted(module)
            module = _T.FuseOps()(sums_apart(module))
            kernels = attribution.fused(module)
            module = tvm.transform.Sequential([_T.FuseTIR(), *_BEFORE_SCHEDULES, self.schedule])(module)
            plan = _with_memory_plan(module)
            kernels |= {name: kernels.get(original, []) for name, original in plan.names.items()}
            try:
                workspaces = ending(plan.module)
            except BeyondTarget as refusal:
                refusal.nodes = {n: why for k, why in refusal.kernels.items() for n in kernels.get(k, ())}
                raise
        return Compilation(kernels, plan.memories, workspaces)

    def _probe(self, nodes: list[ir.Node], refused: Mapping[str, str]) -> None:
        """Emit everything once, to learn which nodes are refused."""
        emitter = self._emitter(relax.BlockBuilder())

        def refuse(node: ir.Node, reason: str) -> None:
            self.reasons[node] = reason
            for value in node.outputs:
                self._bind_variable(emitter, value)

        with emitter.builder.function("probe"):
            with emitter.builder.dataflow():
                for value in self.graph.inputs:
                    self._bind_variable(emitter, value)
                emit_nodes(emitter, nodes, refuse, defer=False, refused=refused)
                self._check_outputs(emitter, refuse)
                found = ((v, emitter.without_tensor(v)) for n in nodes for v in n.outputs)
                self.known = {v: result for v, result in found if result is not None}
                nothing = emitter.builder.emit_output(relax.Tuple([]))
            emitter.builder.emit_func_output(nothing, params=[])

    def _check_outputs(self, emitter: Emitter, refuse: Callable[[ir.Node, str], None]) -> None:
        for value in self.graph.outputs:
            try:
                emitter.x(value)
            except Refused as refusal:
                producer = value.producer()
                if producer is not None and producer not in self.reasons:
                    refuse(producer, refusal.reason)

    def _emitter(self, builder: relax.BlockBuilder) -> Emitter:
        found = self.constants, self.weights, self.sizes, self.definitions
        emitter = Emitter(builder, *found, self.tiles, self.learned)
        self.tiles.asked_by(lambda: emitter.node_name)
        return emitter

    def _bind_variable(self, emitter: Emitter, value: ir.Value) -> relax.Var | None:
        """Bind a value that comes from elsewhere to a variable of its type and shape, if Relax can hold it."""
        if value.name in self.weights or value.shape is None or value.dtype in (None, ir.DataType.STRING):
            return None
        if not isinstance(value.type, ir.TensorType) or value.dtype in _UNKNOWN_TO_RELAX:
            return None
        dims = [d if isinstance(d, int) else emitter.size(size_name(value, i)) for i, d in enumerate(value.shape)]
        var = relax.Var(value.name or "value", relax.TensorType(dims, dtype_name(value.dtype)))
        emitter.bind(value, var)
        return var

    def _emit(self, module: relax.BlockBuilder, parts: list[Segment]) -> list[Step]:
        needed = {i: self._outputs_of(parts, i) for i in range(len(parts))}
        return [
            self._fallback_step(i, part, needed[i]) if part.fallback else self._relax_step(module, i, part, needed[i])
            for i, part in enumerate(parts)
        ]

    def _outputs_of(self, parts: list[Segment], index: int) -> list[ir.Value]:
        made = {v for n in parts[index].nodes for v in n.outputs}
        later = {v for part in parts[index + 1 :] for v in self._inputs_of(part)}
        wanted = later | set(self.graph.outputs)
        return [v for n in parts[index].nodes for v in n.outputs if v in wanted and v in made]

    def _inputs_of(self, part: Segment) -> list[ir.Value]:
        made = {v for n in part.nodes for v in n.outputs}
        ordered: dict[ir.Value, None] = {}
        for node in part.nodes:
            for value in [
                *(v for v in node.inputs if v is not None),
                *sorted(captured(node), key=lambda v: v.name or ""),
            ]:
                if value not in made and value.name not in self.weights:
                    ordered[value] = None
        return list(ordered)

    def _fallback_step(self, index: int, part: Segment, outputs: list[ir.Value]) -> Step:
        reasons = {f"{n.op_type}: {self.reasons[n]}": None for n in part.nodes}
        return Step(
            ONNXRUNTIME,
            f"partition{index}",
            [_value(v) for v in self._inputs_of(part)],
            [_value(v) for v in outputs],
            nodes=[n.name or "" for n in part.nodes],
            reasons=list(reasons),
        )

    def _relax_step(self, module: relax.BlockBuilder, index: int, part: Segment, outputs: list[ir.Value]) -> Step:
        emitter = self._emitter(module)
        entry = f"segment{index}"
        inputs = self._inputs_of(part)

        def refuse(node: ir.Node, reason: str) -> None:
            raise RuntimeError(f"node {node.name!r} was emitted in the probe but is refused now: {reason}")

        with module.function(entry):
            with module.dataflow():
                for value in inputs:
                    if value in self.known:
                        emitter.bind(value, self.known[value])
                computed = [v for v in inputs if v not in self.known]
                bound = [(v, var) for v in computed if (var := self._bind_variable(emitter, v)) is not None]
                emit_nodes(emitter, part.nodes, refuse)
                results = module.emit_output(relax.Tuple([_output(emitter, part, v) for v in outputs]))
            sizes = relax.Var("sizes", relax.ShapeType([*self.sizes.values(), *self.definitions]))
            params = [var for _, var in bound]
            module.emit_func_output(results, params=[*params, sizes, *emitter.packed.values()])
        function = module.get()[entry].with_attr("num_input", len(params) + 1)
        module.update_func(module.get().get_global_var(entry), function)
        return Step(
            RELAX,
            entry,
            [_value(v) for v, _ in bound],
            [_value(v) for v in outputs],
            sizes=[*self.sizes, *(v.name for v in self.definitions)],
            weights=[self.table.setdefault(p, len(self.table)) for p in emitter.packed],
            nodes=[n.name or "" for n in part.nodes],
            checks=emitter.checks,
        )


def _with_memory_plan(module: tvm.IRModule) -> MemoryPlan:
    """The module with its memory planned; with its kernels in another order, if that makes the arenas shorter."""
    lower = tvm.transform.Sequential(_AFTER_SCHEDULES)
    planned = plan_memory(lower(module))
    other = reordered(module)
    if other is not None:
        planned = min(planned, plan_memory(lower(other)), key=lambda plan: plan.bytes)
    give_back_free_memory()  # the proofs that a kernel may overwrite its input take arrays as large as its buffers
    return planned


_UNKNOWN_TO_RELAX = {
    ir.DataType.COMPLEX64,
    ir.DataType.COMPLEX128,
    ir.DataType.UNDEFINED,
}


def size_name(value: ir.Value, axis: int) -> str:
    """The name of a symbolic size: its own where the model gives one, else made from the value's name and the axis."""
    dim = value.shape[axis] if value.shape is not None else None
    name = getattr(dim, "value", None)
    return name if isinstance(name, str) and name.isidentifier() else f"{value.name}.{axis}"


def _output(emitter: Emitter, part: Segment, value: ir.Value) -> relax.Var:
    """An output in ONNX's axis order; a transposition that this takes is its producer's."""
    producer = value.producer()
    emitter.label = "" if producer is None else label(part.nodes.index(producer))
    return emitter.x(value)


def _value(value: ir.Value) -> Value:
    tensor = isinstance(value.type, ir.TensorType)
    dtype = element_name(value.dtype) if tensor and value.dtype is not None else _type_name(value.type)
    if value.shape is None:
        return Value(value.name or "", dtype, None)
    shape = [d if isinstance(d, int) else size_name(value, i) for i, d in enumerate(value.shape)]
    return Value(value.name or "", dtype, shape)


def _type_name(kind: ir.TypeProtocol | None) -> str:
    """As ONNX writes the type of something that is not a tensor: `seq(tensor(float))`."""
    if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        return f"{'seq' if isinstance(kind, ir.SequenceType) else 'optional'}({_type_name(kind.elem_type)})"
    return "" if kind is None else f"tensor({kind.dtype.name.lower()})"


__all__ = ["BeyondTarget", "Builder", "RefusedNodes", "size_name", "static_int"]
