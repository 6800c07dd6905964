"""Using a trained network: recommender, command, export, ONNX."""
