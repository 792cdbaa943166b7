"""The places that a graph can be compiled for, by the kind of target."""

from __future__ import annotations

import importlib

from backends.base import Backend, BackendInfo
from optimizer.errors import TargetError

__all__ = ["BACKENDS", "Backend", "BackendInfo", "get_backend"]

BACKENDS = {"cpu": ("backends.cpu.backend", "CpuBackend"), "onnx": ("backends.ort", "OrtBackend")}
"""Target kind -> the module and the class, imported on first use."""


def get_backend(kind: str) -> Backend:
    """The backend of a kind of target.

    Raises:
        TargetError: there is none.
    """
    if kind not in BACKENDS:
        raise TargetError(f"no backend for target kind {kind!r}; available: {', '.join(sorted(BACKENDS))}")
    module, name = BACKENDS[kind]
    backend: Backend = getattr(importlib.import_module(module), name)()
    return backend
