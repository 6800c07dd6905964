"""A trained network in use: recommender, command, export, ONNX."""
