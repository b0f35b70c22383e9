"""What `jobs.export` writes: an ONNX model with its check, and mmdet's files."""
