"""Predictions from any source, and their metrics: COCO's average precision and AzureML's VOC-style ones."""
