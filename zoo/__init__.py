"""The ground: what an image is and what a model package is. No torch, no onnxruntime."""
