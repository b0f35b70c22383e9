"""The Ray Serve deployments: Ingress ─▶ ImageLoader ─▶ Detector ─▶ Polygonizer. Without HTTP, without image processing.

Ingress     ingress (params) ─▶ admission (pace) ─▶ scoring ─▶ grouping ─▶ unary_calls ─▶ the stages
stages      image_loader (retry_alone, scaling), detector, polygonizer; stage is what they share, task what they pass on
settings    settings, fetch_settings
operating   metrics, tracing, access_log, probe; in_process: the stages without replicas of their own (`layout: together`)
"""
