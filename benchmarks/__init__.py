"""Measurements beside ONNX Runtime: the harness and the suite of models."""
