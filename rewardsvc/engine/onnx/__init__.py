"""ONNX Runtime: exported reward models, and the backend that serves them."""
