"""The functions of CUDA's driver that are called, with their types, and its errors as exceptions."""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ["ADDRESS", "Calls", "CudaError"]

_POINTER, _SIZE, _UNSIGNED = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint
ADDRESS = ctypes.c_uint64
_SIGNATURES: dict[str, list[Any]] = {
    "cuGetErrorName": [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
    "cuGetErrorString": [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
    "cuDeviceGetName": [ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
    "cuDevicePrimaryCtxRetain": [ctypes.POINTER(_POINTER), ctypes.c_int],
    "cuCtxSetCurrent": [_POINTER],
    "cuCtxSynchronize": [],
    "cuModuleLoadDataEx": [
        *(ctypes.POINTER(_POINTER), ctypes.c_char_p, _UNSIGNED),
        *(ctypes.POINTER(ctypes.c_int), ctypes.POINTER(_POINTER)),
    ],
    "cuModuleUnload": [_POINTER],
    "cuModuleGetFunction": [ctypes.POINTER(_POINTER), _POINTER, ctypes.c_char_p],
    "cuMemAlloc_v2": [ctypes.POINTER(ADDRESS), _SIZE],
    "cuMemFree_v2": [ADDRESS],
    "cuMemcpyHtoD_v2": [ADDRESS, _POINTER, _SIZE],
    "cuMemcpyDtoH_v2": [_POINTER, ADDRESS, _SIZE],
    "cuMemcpyDtoD_v2": [ADDRESS, ADDRESS, _SIZE],
    "cuLaunchKernel": [
        *(_POINTER, *[_UNSIGNED] * 7, _POINTER),
        *(ctypes.POINTER(_POINTER), ctypes.POINTER(_POINTER)),
    ],
    "cuEventCreate": [ctypes.POINTER(_POINTER), _UNSIGNED],
    "cuEventRecord": [_POINTER, _POINTER],
    "cuEventElapsedTime": [ctypes.POINTER(ctypes.c_float), _POINTER, _POINTER],
    "cuEventDestroy_v2": [_POINTER],
}
_GRAPHS: dict[str, list[Any]] = {
    "cuStreamCreate": [ctypes.POINTER(_POINTER), _UNSIGNED],
    "cuStreamBeginCapture_v2": [_POINTER, ctypes.c_int],
    "cuStreamEndCapture": [_POINTER, ctypes.POINTER(_POINTER)],
    "cuGraphInstantiateWithFlags": [ctypes.POINTER(_POINTER), _POINTER, ctypes.c_ulonglong],
    "cuGraphDestroy": [_POINTER],
    "cuGraphLaunch": [_POINTER, _POINTER],
    "cuGraphExecDestroy": [_POINTER],
}
"""Of CUDA 11.4; an older driver runs models, too."""
_NOT_FOUND = 500
"""CUDA_ERROR_NOT_FOUND."""


class CudaError(Exception):
    """The driver answers with an error.

    Attributes:
        status: CUresult.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Calls:
    """The functions of the library, whose errors are raised."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {}
        for name, types in {**_SIGNATURES, **_GRAPHS}.items():
            if name in _GRAPHS and not hasattr(library, name):
                continue
            function = library[name]  # an object of its own: signatures set here are nobody else's
            function.argtypes, function.restype = types, ctypes.c_int
            self._functions[name] = function

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises:
            CudaError: it answers with an error, or the driver has no such function.
        """
        if name not in self._functions:
            raise CudaError(_NOT_FOUND, f"the driver has no {name}; it is older than CUDA 11.4")
        status = self._functions[name](*arguments)
        if status:
            text = ctypes.c_char_p()
            self._functions["cuGetErrorString"](status, ctypes.byref(text))
            words = (text.value or b"an error without a name").decode(errors="replace")
            raise CudaError(status, f"{name}: {words} ({status})")

    def pointer(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """What a function leaves where its first argument points."""
        made = ctypes.c_void_p()
        self(name, ctypes.byref(made), *arguments)
        return made
