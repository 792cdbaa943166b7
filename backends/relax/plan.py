"""The plan of a run, as it travels from the compile process to the runtime and into a saved model: plain data only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from backends.relax.memory import Memory, Workspace
from backends.relax.size_value import Formula
from optimizer.tuning import Decision

RELAX = "relax"
ONNXRUNTIME = "onnxruntime"

PROBE = "tersor_probe"
"""The function of a compiled module that shows the peak of the processor: see `backends.cpu.probe`."""
PROBE_ROWS, PROBE_STEPS = 12, 10_000
"""Its accumulators, more than two pipes have in flight and few enough for 16 registers; and its steps."""
PROBE_FLOPS_A_LANE = 2 * PROBE_ROWS * PROBE_STEPS


@dataclass
class Value:
    """A tensor that crosses a step's border.

    Attributes:
        name: its name in the graph.
        dtype: numpy or ml_dtypes name; ONNX's name of the type (`seq(tensor(float))`) where it is not a tensor.
        shape: sizes; a string is a symbolic size's name, or an expression that only the run evaluates. None: unknown
        rank.
    """

    name: str
    dtype: str
    shape: list[int | str] | None


@dataclass
class Check:
    """Two sizes that a step needs to be equal, and that only the run knows.

    Attributes:
        node: the name of the node that needs it.
        what: what the two are, for the text of the error.
        left, right: the sizes.
        or_one: whether `left` may be 1 instead.
    """

    node: str
    what: str
    left: Formula
    right: Formula
    or_one: bool = False


@dataclass
class Step:
    """A part of the graph that one engine runs.

    Attributes:
        engine: `RELAX` or `ONNXRUNTIME`.
        entry: the function of the compiled module, or the name of the partition's model part.
        inputs, outputs: the tensors it takes and gives.
        sizes: the symbolic sizes that it takes.
        weights: positions in the table of packed weights.
        nodes: names of the graph's nodes.
        reasons: for `ONNXRUNTIME`: why, one line a kind of node.
        checks: what must hold of the sizes before it runs.
        memory: what it needs besides its weights; nothing is known of `ONNXRUNTIME`'s.
    """

    engine: str
    entry: str
    inputs: list[Value]
    outputs: list[Value]
    sizes: list[str] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)


@dataclass
class WeightSpec:
    """One packed weight: see `backends.relax.values.Packed`; `offset` is its place in the weight buffer, in bytes."""

    source: str
    transform: str
    options: dict[str, Any]
    shape: list[int]
    dtype: str
    offset: int = 0


@dataclass
class Work:
    """What a call of a kernel has to do, as the tile model counts it; see docs/tile-model.md.

    Attributes:
        arguments: the shapes of the kernel's arguments; names in them are bound by those of a call.
        flops: floating-point operations.
        cycles: of one core that computes everything alone, with all data in its first-level cache.
        near: bytes that come from the second-level cache again and again.
        far: bytes that come from the third-level cache again and again.
        weights: bytes of packed weights, each counted once.
        data: bytes of all other arguments and of whole intermediate tensors, each counted once.
        tasks: how many the threads share; 1 where one thread does all.
        width: how many times float32's peak the arithmetic may reach.
    """

    arguments: list[list[int | str]]
    flops: Formula
    cycles: Formula
    near: Formula
    far: Formula
    weights: Formula
    data: Formula
    tasks: Formula
    width: int = 1


@dataclass
class Plan:
    """All steps in order, and the weights that they share.

    Attributes:
        inputs, outputs: of the whole graph.
        weight_bytes: length of the weight buffer.
        kernels: kernel name -> names of the nodes it computes.
        derived: sizes that are computed from the symbolic ones.
        work: kernel name -> what a call of it has to do, where the tile model can tell.
        cpu: the processor that it was compiled for, as the fields of `optimizer.cpus.Cpu`.
        workspaces: kernel name -> what it takes for itself while it runs, and gives back, in order.
        decisions: what was chosen where there are alternatives; wanted while it is compiled, and not saved.
    """

    inputs: list[Value]
    outputs: list[Value]
    steps: list[Step]
    weights: list[WeightSpec]
    weight_bytes: int = 0
    kernels: dict[str, list[str]] = field(default_factory=dict)
    derived: dict[str, Formula] = field(default_factory=dict)
    work: dict[str, Work] = field(default_factory=dict)
    cpu: dict[str, Any] = field(default_factory=dict)
    workspaces: dict[str, list[Workspace]] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {name: value for name, value in asdict(self).items() if name != "decisions"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError: the data is not such a plan.
        """

        def values(items: list[dict[str, Any]]) -> list[Value]:
            return [Value(**v) for v in items]

        def step(item: dict[str, Any]) -> Step:
            checks = [Check(**c) for c in item["checks"]]
            parts = {"inputs": values(item["inputs"]), "outputs": values(item["outputs"]), "checks": checks}
            return Step(**{**item, **parts, "memory": Memory.from_json(item["memory"])})

        return cls(
            values(data["inputs"]),
            values(data["outputs"]),
            [step(s) for s in data["steps"]],
            [WeightSpec(**w) for w in data["weights"]],
            data["weight_bytes"],
            data["kernels"],
            data["derived"],
            {name: Work(**w) for name, w in data["work"].items()},
            data["cpu"],
            {name: [Workspace(**w) for w in taken] for name, taken in data["workspaces"].items()},
        )
