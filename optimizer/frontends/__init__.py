"""The ways in: a PyTorch module, an exported program, a file or an in-memory ONNX model becomes a canonical `onnx_ir.Model`."""
