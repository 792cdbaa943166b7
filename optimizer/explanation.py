"""`tersor explain`: where a pass fired in a model, and why it did not where it nearly did."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from rich.console import Group, RenderableType
from rich.table import Table

from optimizer.errors import PipelineError
from optimizer.ir.near_miss import NearMiss
from optimizer.ir.provenance import label, makers, origins
from optimizer.ir.walk import all_nodes
from optimizer.pass_manager import Fixpoint, Pass, PassManager

__all__ = ["Explanation", "Made", "explain"]


@dataclass(frozen=True)
class Made:
    """A node that a pass made or changed.

    Attributes:
        node: Its label.
        op_type: Its operator.
        origins: Labels of the original nodes that it stands for.
    """

    node: str
    op_type: str
    origins: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """What a pass did in a pipeline, and what it did not.

    Attributes:
        pass_name: The pass.
        made: The nodes of the optimized model that it had a hand in.
        near_misses: Where it nearly fired, and the first condition that does not hold.
    """

    pass_name: str
    made: tuple[Made, ...]
    near_misses: tuple[NearMiss, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "pass": self.pass_name,
            "made": [{"node": m.node, "op_type": m.op_type, "origins": list(m.origins)} for m in self.made],
            "near_misses": [{"node": m.node, "reason": m.reason, "origins": list(m.origins)} for m in self.near_misses],
        }

    def __rich__(self) -> RenderableType:
        if not self.made and not self.near_misses:
            return f"nothing in this model looks like what {self.pass_name} is for"
        parts: list[RenderableType] = [f"{self.pass_name} made {len(self.made)} of the nodes that are left"]
        if self.made:
            rows = [(m.node, m.op_type, m.origins) for m in self.made]
            parts.append(_table(("node", "operator", "stands for"), rows))
        if self.near_misses:
            parts.append(f"and nearly fired at {len(self.near_misses)} more")
            rows = [(m.node, m.reason, m.origins) for m in self.near_misses]
            parts.append(_table(("node", "why it did not", "stands for"), rows))
        return Group(*parts)


def explain(model: ir.Model, pipeline: Sequence[Pass], pass_name: str) -> Explanation:
    """Run a pipeline and say what one of its passes did.

    Args:
        model: Changed in place.
        pipeline: The passes.
        pass_name: In kebab case, such as `"fuse-attention"`.

    Raises:
        PipelineError: The pass is not in the pipeline.
        PassError: A pass failed.
    """
    names = list(dict.fromkeys(_names(pipeline)))
    if pass_name not in names:
        close = difflib.get_close_matches(pass_name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise PipelineError(f"the pipeline has no pass {pass_name!r}{hint}; it has {', '.join(names)}")
    result = PassManager(pipeline).run(model)
    made = [Made(label(n), n.op_type, origins(n)) for n in all_nodes(model) if pass_name in makers(n)]
    misses = [miss for miss in result.near_misses if miss.pass_name == pass_name]
    return Explanation(pass_name, tuple(made), tuple(misses))


def _names(passes: Sequence[Pass]) -> list[str]:
    return [
        name for pass_ in passes for name in (_names(pass_.passes) if isinstance(pass_, Fixpoint) else [pass_.name])
    ]


def _table(columns: Sequence[str], rows: Sequence[tuple[str, str, tuple[str, ...]]]) -> Table:
    table = Table(*columns)
    for first, second, sources in rows:
        table.add_row(first, second, ", ".join(sources))
    return table
