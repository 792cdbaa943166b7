"""Why a fusion did not fire where it nearly would have."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

__all__ = ["NearMiss", "RewriteResult"]


@dataclass(frozen=True, order=True)
class NearMiss:
    """A place that looks like what a fusion is for, and is not.

    Attributes:
        node: The label of the node at which the match began, in the model as it was then.
        reason: The first condition that does not hold, naming the values concerned: `"the mask has rank 5, at most 4
            are possible"`.
        origins: Labels of the nodes of the original model that the node stands for.
        pass_name: The pass; filled in by the pass manager.
    """

    node: str
    reason: str
    origins: tuple[str, ...] = ()
    pass_name: str = ""


@dataclass
class RewriteResult(ir.passes.PassResult):
    """What a pass gives back that also says where it nearly fired.

    Attributes:
        near_misses: In the order in which they were found.
    """

    near_misses: tuple[NearMiss, ...] = field(default=())
