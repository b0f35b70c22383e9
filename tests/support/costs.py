"""Costs of an image, as a measurement on two cores gives them."""

from loadtest.planning.costs import Costs

NET_CPU_MS = {"Ingress": 4.0, "ImageLoader": 2.0, "decoders": 3.0, "Detector": 33.0, "Polygonizer": 3.0, "raylet": 1.0}
COSTS = Costs(
    cpu_ms=NET_CPU_MS,
    net_cpu_ms=NET_CPU_MS,
    idle_cores={"controller": 0.05, "other": 0.15},
    engine_ms=[(1, 22.0), (8, 134.0)],
    engine_cpu_ms=30.0,
    hop_bytes={"client to Ingress": 80_000},
    images_per_s=25.0,
    images=320,
)
