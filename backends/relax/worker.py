"""The compile process.

It is started by `backends.relax.client`, lives as long as its parent, and can crash without taking the parent along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from backends.relax.without_torch import torch_kept_out
from optimizer.child_process import serve
from optimizer.memory import collector_paused

if TYPE_CHECKING:
    import onnx_ir as ir
    import tvm

    from backends.gpu.program import Program
    from backends.relax.build import Builder, Ending
    from backends.relax.plan import Plan


class Code(Protocol):
    """What the kind of the target decides.

    Attributes:
        target: TVM's name for it.
        ending: generates the code.
        program: for a device: what it does, and the text of its program.
    """

    target: tvm.target.Target
    program: tuple[Program, str] | None

    @property
    def ending(self) -> Ending: ...  # noqa: D102  (an attribute)

    def builder(self, model: ir.Model) -> Builder:
        """Compiles the graph."""
        ...

    def completed(self, plan: Plan) -> Plan:
        """The plan with what else is known of it."""
        ...


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Compile one graph; see `backends.relax.client.compile_graph` for the fields."""
    with collector_paused():
        return _compile(request)


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    import onnx
    import onnx_ir as ir

    from backends.relax.build import BeyondTarget, RefusedNodes

    code = _code_of(request)
    refused: dict[str, str] = {}
    while True:
        builder = code.builder(ir.from_proto(onnx.ModelProto.FromString(request["model"])))
        try:
            plan = builder.build(code.target, code.ending, allow_fallback=request["allow_fallback"], refused=refused)
        except RefusedNodes as refusal:
            return {"refused": refusal.reasons}
        except BeyondTarget as refusal:
            if not refusal.nodes.keys() - refused.keys():
                raise
            refused |= refusal.nodes
            continue
        return {"plan": code.completed(plan), "program": code.program}


def _code_of(request: dict[str, Any]) -> Code:
    if request["kind"] == "cpu":
        from backends.cpu.code import CpuCode

        return CpuCode(request)
    from backends.gpu.code import GpuCode

    return GpuCode(request)


def main() -> None:
    """Serve until the parent closes the pipe."""
    serve(handle, _import_compiler)


def _import_compiler() -> None:
    """Import all that a request needs, while the parent still reads its model."""
    with torch_kept_out():
        import tvm  # noqa: F401
        from tvm import relax  # noqa: F401

        from backends.cpu import choices, code, lowering, schedule  # noqa: F401
        from backends.relax import build, registry  # noqa: F401

        registry.emitters()
