"""Compile a PyTorch or ONNX model into a smaller, faster, verified one."""
