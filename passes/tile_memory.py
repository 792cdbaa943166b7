"""Compute parts of a graph piece by piece, so that the activations fit into a memory budget.

    y = f(x)  ->  y = Concat(f(x[0:8]), f(x[8:16]), ...)

1. Operators and chains of them are cut along the batch, the sequence, channels, heads or an axis of the image; what
   slides a window over an image gets a halo, and padding only where the image ends (`passes.tiling.windows`); rows
   that two strips need are kept from one to the next (`passes.tiling.sliding`).
2. A product that sums over the axis that is cut takes the pieces one after the other: y = f(x)[..0:8] @ w[0:8] + ...
   Heads of an attention, and what a layer hides, need never be there together.
3. What is kept for long, such as a skip connection, is computed again where that takes less time than other ways.
4. If the nodes in another order need less, they are put into that order first.

Where to cut, and into how many pieces, is a shortest path (`passes.tiling.search`). A graph that is within the budget
stays as it is, and so does one with symbolic sizes.

Order: last, behind the fusions: they look for whole operators.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.errors import BudgetError
from optimizer.ir.edit import Editor
from optimizer.ir.near_miss import RewriteResult
from optimizer.memory_budget import Figures
from optimizer.pass_manager import Pass
from passes.tiling.census import piece_counts
from passes.tiling.facts import Facts
from passes.tiling.lifetimes import Lifetimes
from passes.tiling.order import put_in_order
from passes.tiling.rewrite import apply
from passes.tiling.search import Search

__all__ = ["TileMemory", "figures_of"]


@dataclasses.dataclass(frozen=True)
class TileMemory(Pass):
    """Cuts operators into pieces until the activations fit.

    Attributes:
        budget_bytes: What the activations may take at one time, inputs and outputs of the graph too; 0 for no limit.
        fused: Whether the graph is compiled with element-wise operators fused to what stands in front of them.
    """

    budget_bytes: int = 0
    fused: bool = True

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cut, if that is needed.

        Raises:
            BudgetError: The budget cannot be met; the error names the smallest that can.
        """
        if not self.budget_bytes:
            return RewriteResult(model, False, ())
        editor = Editor(model)
        facts = Facts(model, self.fused)
        search = Search(facts)
        if search.peak <= self.budget_bytes:
            return RewriteResult(model, False, ())
        facts = put_in_order(editor, facts)
        search = Search(facts)
        plan = search.cheapest(self.budget_bytes) or search.smallest()
        if plan.peak > self.budget_bytes:
            raise BudgetError(
                f"the activations cannot be kept within {self.budget_bytes} bytes: the smallest budget is {plan.peak}",
                smallest=plan.peak,
            )
        apply(editor, facts, plan)
        editor.drop_weights()
        return RewriteResult(model, editor.modified, ())


def figures_of(model: ir.Model, fused: bool) -> Figures:
    """What is predicted of a graph, cut or not.

    Args:
        model: Not changed.
        fused: See `TileMemory`.
    """
    facts = Facts(model, fused)
    pieces = piece_counts(model, TileMemory().name)
    ways = [Lifetimes(facts, seen=seen) for seen in (False, True)]
    peak, seconds = min((each.most, each.seconds) for each in ways)
    return Figures(peak, seconds, max(pieces, default=1), len(pieces))
