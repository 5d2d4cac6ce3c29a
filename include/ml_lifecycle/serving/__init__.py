"""The model server: Open Inference Protocol V2 over REST, ONNX Runtime, routes followed from the lake."""
