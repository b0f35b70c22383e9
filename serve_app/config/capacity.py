"""Estimates the images/s that a configuration allows: by stage, by calls in flight and by URLs in flight.

    rates(settings, deployments, costs, step) ─▶ [Rate(name, images/s with min_replicas, with max_replicas)] ─▶ as_lines

`python -m serve_app.config_file FILE` prints the rates for the costs stated here; `python -m loadtest plan --costs COSTS --config FILE` for
costs measured by `python -m loadtest costs --output COSTS`. The model is simple: stages do not share cores, images are 640x480 JPEGs with
few objects, calls are full. It finds the setting that limits the rate; it does not predict what a machine will reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deployments.settings import DEPLOYMENTS, Settings
from serve_app.config.relations import replicas

NETWORK = "network (Detector)"


@dataclass(frozen=True, slots=True)
class Step:
    """Time of one pass of the network: `base_ms` + `per_image_ms` x batch. Neither is negative, and not both are 0."""

    base_ms: float
    per_image_ms: float

    def ms(self, batch: int) -> float:
        """Milliseconds of a pass over `batch` images."""
        return self.base_ms + self.per_image_ms * batch

    def per_s(self, batch: int) -> float:
        """Images/s of a detector that always runs batches of `batch` images."""
        return batch / self.ms(batch) * 1e3


@dataclass(frozen=True, slots=True)
class StageCosts:
    """CPU time of one image outside the network, and the time to fetch a URL, milliseconds.

    Defaults: measured on two busy Zen 5 cores with simulated detectors and 24 clients (2026-11-29). On the same cores without other work
    they were 2.6, 1.3, 1.5 and 1.1 (docs/RESULTS.md); the defaults are the cautious choice.
    """

    ingress_ms: float = 4.0
    loader_ms: float = 2.0
    decode_ms: float = 1.9
    polygonizer_ms: float = 1.4
    fetch_ms: float = 200.0


STEPS = {
    ("rtmdet-ins_tiny", True): Step(1.3, 0.39),
    ("rtmdet-ins_x", True): Step(2.5, 1.28),
    ("rtmdet-ins_nano_person", False): Step(2.9, 13.0),
}
"""Keys: model, and whether it runs on a GPU. Measured on an H100 with two batches in flight, or with two threads of a Xeon; fitted to the
times of batches of 1 and 8 in docs/RESULTS.md."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What one part of the service allows, images/s.

    Args:
        name: of the part.
        at_min: with `min_replicas`, or `num_replicas`.
        at_max: with `max_replicas`.
        setting: the setting that raises it.
    """

    name: str
    at_min: float
    at_max: float
    setting: str


def step_of(settings: Settings, deployments: Mapping[str, dict[str, Any]]) -> Step | None:
    """The time of a pass if it is known (simulated, or measured in docs/RESULTS.md), else None."""
    if settings.detector.engine == "simulated":
        return Step(settings.detector.simulated.base_ms, settings.detector.simulated.per_image_ms)
    on_gpu = bool((deployments.get("Detector", {}).get("ray_actor_options") or {}).get("num_gpus"))
    return next((step for (model, gpu), step in STEPS.items() if gpu == on_gpu and settings.model.name.startswith(model)), None)


def rates(
    settings: Settings, deployments: Mapping[str, dict[str, Any]], costs: StageCosts, step: Step | None
) -> tuple[list[Rate], list[Rate]]:
    """The chain of images in the body, and that of URLs.

    Args:
        settings: the `args` of the application, layout `stages`.
        deployments: the file's entries by name.
        step: time of a pass of the network; None leaves the network out and counts it as 0 ms.
    """
    ingress, loader, detector, polygonizer = (replicas(deployments.get(name, {})) for name in DEPLOYMENTS)
    groups, batch = settings.ingress.groups, settings.detector.max_batch
    outside_ms = costs.loader_ms + costs.decode_ms / settings.image_loader.threads + costs.polygonizer_ms
    step_ms = 2 * step.ms(batch) if step else 0.0  # an image waits for the running batch, then for its own
    call_s = (groups.max_images * outside_ms + step_ms) / 1e3
    url_s = (outside_ms + step_ms + costs.fetch_ms) / 1e3

    def rate(name: str, count: tuple[int, int], each: float, setting: str) -> Rate:
        return Rate(name, count[0] * each, count[1] * each, setting)

    images = groups.max_images * groups.max_in_flight
    stages = [
        rate("HTTP (Ingress)", ingress, 1e3 / costs.ingress_ms, "deployments[Ingress]: replicas"),
        rate("other work (ImageLoader)", loader, 1e3 / costs.loader_ms, "deployments[ImageLoader]: replicas"),
        rate("decode", loader, settings.image_loader.threads * 1e3 / costs.decode_ms, "args.image_loader.threads"),
        *([rate(NETWORK, detector, step.per_s(batch), "deployments[Detector]: replicas")] if step else []),
        rate("outlines (Polygonizer)", polygonizer, 1e3 / costs.polygonizer_ms, "deployments[Polygonizer]: replicas"),
    ]
    calls = rate("calls in flight", ingress, images / call_s, "args.ingress.groups.max_in_flight")
    urls = rate("URLs in flight", ingress, settings.ingress.max_urls_in_flight / url_s, "args.ingress.max_urls_in_flight")
    return [*stages, calls], [*stages, urls]


def bottleneck(chain: list[Rate], *, at_max: bool) -> Rate:
    """The part with the lowest rate, with `max_replicas` or with `min_replicas`."""
    return min(chain, key=lambda rate: rate.at_max if at_max else rate.at_min)


def as_lines(
    settings: Settings, deployments: Mapping[str, dict[str, Any]], costs: StageCosts, step: Step | None, *, measured: bool = False
) -> list[str]:
    """The rates as a table, and the lowest for images in the body and for URLs.

    Args:
        measured: whether the costs are those of the user's machine; else the last line says how to measure them.
    """
    if settings.layout == "together":
        return [
            "layout: together: all stages share the cores of one replica; measure its rate: "
            "python -m loadtest run --scenario server --config FILE"
        ]
    bodies, by_url = rates(settings, deployments, costs, step)
    lines = [f"{'images/s at most, with':34}{'min_replicas':>16}{'max_replicas':>14}"]
    lines += [f"  {rate.name:32}{rate.at_min:16.0f}{rate.at_max:14.0f}" for rate in (*bodies, by_url[-1])]
    if step is None:
        lines.append(
            f"  {NETWORK:32}       unknown for {settings.model.name}: python -m loadtest costs --config FILE measures it"
        )
    for name, chain in (("images in the body", bodies), ("URLs", by_url)):
        few, many = bottleneck(chain, at_max=False), bottleneck(chain, at_max=True)
        more = f"; with max_replicas {_named(many, many.at_max)}" if (few, few.at_min) != (many, many.at_max) else ""
        lines.append(f"bottleneck for {name}: {_named(few, few.at_min)}{more}")
    network = f", a pass of the network {step.base_ms:.3g} + {step.per_image_ms:.3g} x batch" if step else ""
    lines.append(
        f"{'with' if measured else 'assumed'} ms per image: Ingress {costs.ingress_ms:.3g}, ImageLoader {costs.loader_ms:.3g} and decoding "
        f"{costs.decode_ms:.3g}, Polygonizer {costs.polygonizer_ms:.3g}{network}; {costs.fetch_ms:g} to fetch a URL"
    )
    if not measured:
        lines[-1] += (
            ". For those of your machine: python -m loadtest costs --output costs.json, then "
            "python -m loadtest plan --costs costs.json --config FILE"
        )
    return lines


def _named(rate: Rate, value: float) -> str:
    return f"{rate.name}, {value:.0f}/s ({rate.setting})"
