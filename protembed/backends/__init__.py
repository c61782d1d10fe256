"""Runtimes behind one protocol: torch and onnxruntime."""
