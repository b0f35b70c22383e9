"""The Ray Serve deployments: Ingress ─▶ ImageLoader ─▶ Detector ─▶ Polygonizer. Without HTTP, without image processing.

deployments   ingress (params, probe), image_loader, detector, polygonizer; task is what they pass on
settings      settings, fetch_settings, user_config
scoring/      how the Ingress sends images through the stages
stages/       what the stages share
ray_serve/    what we change in Ray Serve
telemetry/    metrics, spans, log lines
"""
