"""Predictions from several sources, and their metrics: COCO's average precision and AzureML's VOC-style metrics."""
