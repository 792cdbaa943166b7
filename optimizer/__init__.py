"""Compile a PyTorch or ONNX model into a smaller, faster, verified one.

    from optimizer import optimize, load

    compiled = optimize(model, target="cpu", example_inputs=(x,))
    y = compiled(x)
    compiled.save("model.tersor")

Importing this package imports nothing else; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimizer.api import load, optimize
    from optimizer.compiled import CompiledModel
    from optimizer.executable import KernelTime, TensorSpec
    from optimizer.model_diff import ModelDiff, diff
    from optimizer.precision_policy import PrecisionPolicy
    from optimizer.report import Report
    from optimizer.target import Target

__all__ = [
    "CompiledModel",
    "KernelTime",
    "ModelDiff",
    "PrecisionPolicy",
    "Report",
    "Target",
    "TensorSpec",
    "diff",
    "load",
    "optimize",
]

_HOMES = {
    "CompiledModel": "optimizer.compiled",
    "KernelTime": "optimizer.executable",
    "ModelDiff": "optimizer.model_diff",
    "PrecisionPolicy": "optimizer.precision_policy",
    "Report": "optimizer.report",
    "Target": "optimizer.target",
    "TensorSpec": "optimizer.executable",
    "diff": "optimizer.model_diff",
    "load": "optimizer.api",
    "optimize": "optimizer.api",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
