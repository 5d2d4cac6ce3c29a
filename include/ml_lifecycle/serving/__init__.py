"""The model server: Open Inference Protocol V2 over ONNX Runtime."""
