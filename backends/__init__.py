"""The places that a graph can be compiled for, by the kind of target."""

from __future__ import annotations

import importlib
from typing import cast

from backends.base import Backend, BackendInfo
from optimizer.errors import TargetError
from optimizer.plugins import load_plugin, plugin_kinds

__all__ = ["BACKENDS", "Backend", "BackendInfo", "backend_kinds", "get_backend"]

BACKENDS = {
    "cpu": ("backends.cpu.backend", "CpuBackend"),
    "cuda": ("backends.cuda.backend", "CudaBackend"),
    "onnx": ("backends.ort", "OrtBackend"),
    "opencl": ("backends.opencl.backend", "OpenClBackend"),
}
"""Target kind -> the module and the class, imported on first use; those of other packages are entry points."""

_MEMBERS = ("name", "precisions", "mappable", "prewarm", "rest", "compile", "load", "describe")


def backend_kinds() -> list[str]:
    """All kinds of targets, those that other packages bring along last."""
    return [*sorted(BACKENDS), *sorted(plugin_kinds().keys() - BACKENDS.keys())]


def get_backend(kind: str) -> Backend:
    """The backend of a kind of target.

    Raises:
        TargetError: there is none, or the package that brings it cannot be loaded.
    """
    if kind not in BACKENDS:
        if kind in plugin_kinds():
            return cast(Backend, load_plugin(kind, _MEMBERS))
        raise TargetError(
            f"no backend for target kind {kind!r}: install the package that brings it, or take one of "
            f"{', '.join(backend_kinds())}"
        )
    module, name = BACKENDS[kind]
    backend: Backend = getattr(importlib.import_module(module), name)()
    return backend
