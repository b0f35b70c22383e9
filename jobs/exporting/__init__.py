"""What `jobs.export` writes: an ONNX model, and mmdet's files."""
