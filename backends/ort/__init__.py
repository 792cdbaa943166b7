"""The "onnx" target: the optimized graph itself, run by ONNX Runtime."""

from backends.ort.backend import OrtBackend
from optimizer.ort_session import OrtSession

__all__ = ["OrtBackend", "OrtSession"]
