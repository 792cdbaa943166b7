"""Emitters from ONNX to Relax, one file an operator family."""
