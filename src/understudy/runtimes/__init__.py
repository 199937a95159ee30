"""What runs a model in a process of its own: a file here a runtime, as `worker.py` says."""

FILES = {".onnx": "onnx", ".xml": "openvino", ".pte": "executorch", ".tflite": "litert"}
"""What runs a file, by its suffix."""
