"""Importing TVM without importing torch.

`tvm_ffi` imports torch when it is installed, for one case (Windows, one torch release) that does not concern us; it
costs a second
and 150 MB, and a saved model must load where torch is not wanted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_kept_out() -> Iterator[None]:
    """While this is active, `import torch` fails, unless torch is imported already."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
