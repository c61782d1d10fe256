"""Models as ONNX graphs: drawn without torch, written, read back, and run by onnxruntime."""
