"""What rate a configuration allows: each stage, the calls in flight and the URLs in flight, at stated costs; the narrowest decides.

    rates(settings, deployments, costs, step) ─▶ [Rate(name, images/s with the fewest replicas, with the most)] ─▶ as_lines

`python -m serve_app.config_file FILE` prints it with the costs stated here, `python -m loadtest plan --config FILE` with measured ones. A
model, deliberately small: stages do not share cores, images are 640x480 JPEGs with few objects, calls are full. It tells which setting
is the narrow one, not what a machine will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deployments.settings import Settings
from serve_app.config_relations import replicas

STAGES = ("Ingress", "ImageLoader", "Detector", "Polygonizer")
NETWORK = "network (Detector)"


@dataclass(frozen=True, slots=True)
class Step:
    """A pass of the network: `base_ms` + `per_image_ms` x batch; both not negative, not both 0."""

    base_ms: float
    per_image_ms: float

    def ms(self, batch: int) -> float:
        """Milliseconds of a pass over `batch` images."""
        return self.base_ms + self.per_image_ms * batch

    def per_s(self, batch: int) -> float:
        """Images a second of a detector that always runs `batch` images."""
        return batch / self.ms(batch) * 1e3


@dataclass(frozen=True, slots=True)
class StageCosts:
    """What an image costs outside the network, milliseconds of CPU; and what a URL waits for its host, milliseconds.

    The defaults are the two Xeon cores of docs/RESULTS.md, CPU time per image.
    """

    ingress_ms: float = 4.3
    loader_ms: float = 2.2
    decode_ms: float = 2.4
    polygonizer_ms: float = 2.5
    fetch_ms: float = 200.0


STEPS = {
    ("rtmdet-ins_tiny", True): Step(1.3, 0.39),
    ("rtmdet-ins_x", True): Step(2.5, 1.28),
    ("rtmdet-ins_nano_person", False): Step(2.9, 13.0),
}
"""By model and whether it is on a card: an H100 with two batches in flight, or two threads of a Xeon. Fitted to the batches of 1 and 8 of
docs/RESULTS.md."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What one part of the chain allows, images/s, with the fewest and with the most replicas that the file wants.

    Args:
        setting: what raises it.
    """

    name: str
    fewest: float
    most: float
    setting: str


def step_of(settings: Settings, deployments: Mapping[str, dict[str, Any]]) -> Step | None:
    """The network's step where it is known: simulated, or measured in docs/RESULTS.md."""
    if settings.detector.engine == "simulated":
        return Step(settings.detector.simulated.base_ms, settings.detector.simulated.per_image_ms)
    on_card = bool((deployments.get("Detector", {}).get("ray_actor_options") or {}).get("num_gpus"))
    return next(
        (step for (model, card), step in STEPS.items() if card == on_card and settings.model.name.startswith(model)), None
    )


def rates(
    settings: Settings, deployments: Mapping[str, dict[str, Any]], costs: StageCosts, step: Step | None
) -> tuple[list[Rate], list[Rate]]:
    """The chain of images in the body, and that of URLs.

    Args:
        settings: the `args` of the application, layout `stages`.
        deployments: the file's entries by name.
        step: of the network; None leaves it out, and what waits for it counts as if it took no time.
    """
    ingress, loader, detector, polygonizer = (replicas(deployments.get(name, {})) for name in STAGES)
    groups, batch = settings.ingress.groups, settings.detector.max_batch
    outside_ms = costs.loader_ms + costs.decode_ms / settings.image_loader.threads + costs.polygonizer_ms
    step_ms = 2 * step.ms(batch) if step else 0.0  # a running batch, then its own
    call_s = (groups.max_images * outside_ms + step_ms) / 1e3
    url_s = (outside_ms + step_ms + costs.fetch_ms) / 1e3

    def rate(name: str, count: tuple[int, int], each: float, setting: str) -> Rate:
        return Rate(name, count[0] * each, count[1] * each, setting)

    images = groups.max_images * groups.max_in_flight
    stages = [
        rate("HTTP (Ingress)", ingress, 1e3 / costs.ingress_ms, "deployments[Ingress]: replicas"),
        rate("fetch and hand on (ImageLoader)", loader, 1e3 / costs.loader_ms, "deployments[ImageLoader]: replicas"),
        rate("decode", loader, settings.image_loader.threads * 1e3 / costs.decode_ms, "args.image_loader.threads"),
        *([rate(NETWORK, detector, step.per_s(batch), "deployments[Detector]: replicas")] if step else []),
        rate("outlines (Polygonizer)", polygonizer, 1e3 / costs.polygonizer_ms, "deployments[Polygonizer]: replicas"),
    ]
    calls = rate("calls in flight", ingress, images / call_s, "args.ingress.groups.max_in_flight")
    urls = rate("URLs in flight", ingress, settings.ingress.max_urls_in_flight / url_s, "args.ingress.max_urls_in_flight")
    return [*stages, calls], [*stages, urls]


def narrowest(chain: list[Rate], *, most: bool) -> Rate:
    """The part that allows least."""
    return min(chain, key=lambda rate: rate.most if most else rate.fewest)


def as_lines(settings: Settings, deployments: Mapping[str, dict[str, Any]], costs: StageCosts, step: Step | None) -> list[str]:
    """For people: every rate, and the narrowest for images in the body and for URLs."""
    if settings.layout == "together":
        return ["layout: together: all stages share the cores of one replica; `python -m loadtest run` measures what it does"]
    bodies, by_url = rates(settings, deployments, costs, step)
    lines = [f"{'images/s at most':34}{'fewest replicas':>16}{'most':>8}"]
    lines += [f"  {rate.name:32}{rate.fewest:16.0f}{rate.most:8.0f}" for rate in (*bodies, by_url[-1])]
    if step is None:
        lines.append(f"  {NETWORK:32}       unknown for {settings.model.name} there: measure it with python -m benchmarks.bench")
    for name, chain in (("images in the body", bodies), ("URLs", by_url)):
        few, many = narrowest(chain, most=False), narrowest(chain, most=True)
        more = f"; with the most replicas {_named(many, many.most)}" if (few, few.fewest) != (many, many.most) else ""
        lines.append(f"narrowest for {name}: {_named(few, few.fewest)}{more}")
    network = f", a pass of the network {step.base_ms:g} + {step.per_image_ms:g} x batch" if step else ""
    lines.append(
        f"at these costs, ms: Ingress {costs.ingress_ms:g}, ImageLoader {costs.loader_ms:g} and decoding {costs.decode_ms:g}, "
        f"Polygonizer {costs.polygonizer_ms:g} an image{network}; {costs.fetch_ms:g} for a URL's host. "
        "With yours: python -m loadtest plan --config"
    )
    return lines


def _named(rate: Rate, value: float) -> str:
    return f"{rate.name}, {value:.0f}/s ({rate.setting})"
