"""PyTorch's exporter lists its translations without parsing them.

It asks each of the 500 functions of onnxscript that translate an operator for the domain of its intermediate
representation, and each parses its own source for the answer, again in every export: 0.3 of MobileNetV2's 2.3 seconds.
The domain is that of the opset which the function was made for, so they parse only for what else they are asked.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["parsed_when_needed"]

_LOCK = threading.RLock()


class _Unparsed:
    """Stands for a function's representation; parses the function when it is asked for more than the domain."""

    def __init__(self, function: Any, parsed: property) -> None:
        self._function, self._parsed = function, parsed

    @property
    def domain(self) -> str:
        known = getattr(self._function.opset, "domain", None)
        return known if isinstance(known, str) else str(self._parsed.__get__(self._function).domain)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parsed.__get__(self._function), name)


@contextlib.contextmanager
def parsed_when_needed() -> Iterator[None]:
    """Within, translations are parsed when needed; with a version of onnxscript that is made otherwise, as ever."""
    functions = _functions()
    parsed = getattr(functions, "function_ir", None)
    if not isinstance(parsed, property) or not hasattr(functions, "opset"):
        yield
        return
    with _LOCK:
        functions.function_ir = property(lambda function: _Unparsed(function, parsed))
        try:
            yield
        finally:
            functions.function_ir = parsed


def _functions() -> Any:
    """The class of the functions that are parsed; `None` if there is none."""
    try:
        from onnxscript.values import TracedOnnxFunction
    except ImportError:
        return None
    return TracedOnnxFunction
