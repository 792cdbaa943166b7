"""What is added to `onnx_ir`: costs, fingerprints, provenance, shapes and liveness."""
