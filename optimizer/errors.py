"""Every exception that this package raises on purpose.

One base class, one class for each thing that a caller can do something about. A message names the offending value and
what to do about it, in one line.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "BudgetError",
    "CompileError",
    "ExecutionError",
    "InputError",
    "ModelError",
    "PassError",
    "PipelineError",
    "PrecisionError",
    "TargetError",
    "TersorError",
    "UnsupportedError",
    "VerificationError",
]


class TersorError(Exception):
    """Base of every error that this package raises on purpose."""


class ModelError(TersorError):
    """The model itself is broken: unreadable, cyclic, mistyped, truncated, or not a model at all."""


class UnsupportedError(TersorError):
    """The model, or an option, asks for something that is valid but that nothing here can do.

    Attributes:
        node: Name of the node that asks for it, or `""` when it is not about one node.
        reason: Why it cannot be done, without the node's name.
    """

    def __init__(self, reason: str, *, node: str = "") -> None:
        super().__init__(f"node {node!r}: {reason}" if node else reason)
        self.node = node
        self.reason = reason


class BudgetError(UnsupportedError):
    """A memory budget cannot be met.

    Attributes:
        smallest: The smallest that can be met, in bytes.
    """

    def __init__(self, reason: str, *, smallest: int) -> None:
        super().__init__(reason)
        self.smallest = smallest


class PolicyError(UnsupportedError):
    """The budget of a precision policy cannot be met.

    Attributes:
        smallest: The smallest that can be met, in the unit of the budget.
    """

    def __init__(self, reason: str, *, smallest: float) -> None:
        super().__init__(reason)
        self.smallest = smallest


class TargetError(TersorError):
    """The target is unknown, malformed, or not available on this machine."""


class PrecisionError(TersorError):
    """The precision is unknown or not available for the target."""


class InputError(TersorError, ValueError):
    """A compiled model was called with the wrong inputs, or an optimizer option has a wrong value."""


class ArtifactError(TersorError):
    """A saved model cannot be written, or is truncated, tampered with, or of another format."""


class CompileError(TersorError):
    """Code generation failed; the process that did it may have crashed without taking this one along."""


class ExecutionError(TersorError):
    """A model that was loaded fails on these inputs: their sizes do not go together, or memory ran out."""


class VerificationError(TersorError):
    """The optimized model does not compute what the original does."""


class PassError(TersorError):
    """A pass broke its contract.

    Attributes:
        pass_name: The registered name of the pass, such as `"fold-constants"`.
    """

    def __init__(self, reason: str, *, pass_name: str) -> None:
        super().__init__(f"pass {pass_name!r}: {reason}")
        self.pass_name = pass_name


class PipelineError(TersorError):
    """A pipeline string cannot be parsed, or names an unknown pass or option."""
