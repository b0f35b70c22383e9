"""Measures the cost of an image: CPU time by process (stages, Ray), and bytes by hop.

    python -m loadtest costs [--clients 16] [--images-per-request 1] [--urls] [--count 320] [--config serve_config.yaml] [--images folder]

Starts the service, measures it idle, loads it in a closed loop, and divides the CPU time of each process by the images. `net` is without
what the idle service uses: health checks, metrics, Ray's controller. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests

from deployments.detector import engine_options
from deployments.settings import EMBEDDED_MODEL
from jobs.command_line import CommandFault, count, print_progress
from loadtest.load.image_server import allow_image_server, start_image_server
from loadtest.load.photos import photos_from
from loadtest.load.traffic import JSON_HEADERS, request_bodies
from loadtest.planning.engine_alone import measure_engine
from loadtest.service.local_service import SHIPPED_CONFIG, Edit, LocalService, local_service
from loadtest.service.machine import describe_machine, print_results
from loadtest.service.parts import part_of
from pipeline.errors import ServiceError
from pipeline.images.decode import DecodeLimits
from pipeline.images.load import load_image
from pipeline.inference.create import load_engine
from pipeline.inference.engine import Engine
from pipeline.masks.encode import instances_to_json_objects, join_json_objects
from pipeline.types import DetectOptions, OutlineOptions
from serve_app.config_file import check_config

IDLE_S, ENGINE_S = 8.0, 3.0
"""Seconds for which the idle service, and the engine alone at each batch size, are measured."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Result of a measurement.

    Args:
        cpu_ms: CPU time per image by part (stages, their decoders, Ray's processes), milliseconds.
        net_cpu_ms: the same, without what the idle service uses.
        idle_cores: cores that each part uses while the service is idle.
        engine_ms: (batch, wall milliseconds a pass of the engine alone) for two batch sizes.
        engine_cpu_ms: CPU milliseconds per image of the engine alone at the larger of these batches.
        hop_bytes: bytes an image by hop.
        images_per_s: of the loaded run.
        images: answered in it.
        model: what was served.
        on_cpu: whether the network ran on the CPU; if not, all CPU time of a Detector is host work, and `engine_cpu_ms` is 0.
        layout: of the service; `together` has no costs by stage.
        urls: whether requests held URLs instead of base64.
    """

    cpu_ms: dict[str, float]
    net_cpu_ms: dict[str, float]
    idle_cores: dict[str, float]
    engine_ms: list[tuple[int, float]]
    engine_cpu_ms: float
    hop_bytes: dict[str, int]
    images_per_s: float
    images: int
    model: str = EMBEDDED_MODEL
    on_cpu: bool = True
    layout: str = "stages"
    urls: bool = False

    @property
    def outside_engine_ms(self) -> float:
        """Net CPU milliseconds per image of everything but the engine."""
        return sum(self.net_cpu_ms.values()) - self.engine_cpu_ms


def cpu_seconds(service: LocalService) -> dict[int, tuple[str, float]]:
    """Part and CPU seconds so far, by process id."""
    seconds = {}
    for process in service.processes():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        seconds[process.pid] = part_of(process), times.user + times.system
    return seconds


def spent(before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]]) -> dict[str, float]:
    """CPU seconds by part between two measurements; a new process counts from its start."""
    total: dict[str, float] = defaultdict(float)
    for pid, (part, seconds) in after.items():
        total[part] += seconds - before.get(pid, (part, 0.0))[1]
    return total


def measure_costs(
    photos: Sequence[bytes],
    clients: int,
    images_per_request: int,
    count: int,
    config: Path = SHIPPED_CONFIG,
    urls: bool = False,
) -> Costs:
    """Run the service and the engine alone.

    Args:
        photos: encoded images.
        clients: of the closed loop.
        images_per_request: in each request.
        count: images to answer.
        config: a serve_config.yaml; its model, engine and layout are measured.
        urls: send URLs of an image server in this process, whose CPU time is not counted.
    Raises:
        ConfigurationError: the file is invalid.
        RuntimeError: a response was not 200.
    """
    settings = check_config(config)[0]
    own = threading.local()

    def open_session() -> None:
        own.session = requests.Session()

    with (
        _sent(photos, urls) as (images_sent, change),
        local_service(config, change) as service,
        ThreadPoolExecutor(clients, initializer=open_session) as pool,
    ):
        bodies = request_bodies(images_sent, images_per_request)

        def ask(number: int) -> None:
            body = bodies[number % len(bodies)]
            answer = own.session.post(f"{service.url}/score", data=body, headers=JSON_HEADERS, timeout=120)
            if answer.status_code != 200:
                raise RuntimeError(f"an answer with status {answer.status_code}: {answer.text[:200]}")

        list(pool.map(ask, range(2 * clients)))
        time.sleep(1)
        idle_from = cpu_seconds(service)
        time.sleep(IDLE_S)
        began, before = time.perf_counter(), cpu_seconds(service)
        list(pool.map(ask, range(max(1, count // images_per_request))))
        took_s, after = time.perf_counter() - began, cpu_seconds(service)
    images = max(1, count // images_per_request) * images_per_request
    idle = {part: seconds / IDLE_S for part, seconds in spent(idle_from, before).items()}
    loaded = spent(before, after)
    engine = load_engine(settings.model.name, engine_options(settings.model, settings.detector))
    on_cpu = engine.info.engine == "openvino" or engine.info.device == "cpu"
    engine_ms, engine_cpu_ms, hops = _engine_and_hops(engine, photos)
    return Costs(
        cpu_ms={part: seconds / images * 1e3 for part, seconds in loaded.items()},
        net_cpu_ms={part: max(0.0, seconds - idle.get(part, 0.0) * took_s) / images * 1e3 for part, seconds in loaded.items()},
        idle_cores=idle,
        engine_ms=engine_ms,
        engine_cpu_ms=engine_cpu_ms if on_cpu else 0.0,
        hop_bytes=hops,
        images_per_s=images / took_s,
        images=images,
        model=settings.model.name,
        on_cpu=on_cpu,
        layout=settings.layout,
        urls=urls,
    )


@contextmanager
def _sent(photos: Sequence[bytes], urls: bool) -> Iterator[tuple[Sequence[bytes | str], Edit | None]]:
    """The photos as requests hold them, and the change of the configuration that this needs."""
    if not urls:
        yield photos, None
        return
    server, addresses = start_image_server(photos)
    try:
        yield addresses, partial(allow_image_server, port=server.server_port)
    finally:
        server.shutdown()
        server.server_close()


def _engine_and_hops(engine: Engine, photos: Sequence[bytes]) -> tuple[list[tuple[int, float]], float, dict[str, int]]:
    largest = max(2, engine.info.max_batch)  # two sizes make a step; an engine takes a larger one in parts
    loaded = [load_image(photo, DecodeLimits(), engine.info.input_size) for photo in photos]
    passes = [(batch, batch / measure_engine(engine, photos, batch, ENGINE_S) * 1e3) for batch in (1, largest)]
    began, images = time.process_time(), 0
    while images < 8 * largest:
        found = engine.detect([loaded[(images + n) % len(loaded)] for n in range(largest)], [DetectOptions()] * largest)
        images += largest
    engine_cpu_ms = (time.process_time() - began) / images * 1e3
    answers = [join_json_objects(instances_to_json_objects(one, engine.info.classes, OutlineOptions())) for one in found]
    hops = {
        "client to Ingress": int(np.mean([len(body) for body in request_bodies(photos, 1)])),
        "Ingress to ImageLoader": int(np.mean([len(photo) * 4 / 3 for photo in photos])),
        "ImageLoader to Detector": int(np.mean([image.pixels.nbytes for image in loaded])),
        "Detector to Polygonizer": int(np.mean([one.mask_logits.nbytes + one.boxes.nbytes for one in found])),
        "Polygonizer to client": int(np.mean([len(answer) for answer in answers])),
    }
    return passes, engine_cpu_ms, hops


def as_table(costs: Costs) -> str:
    """The result as a table."""
    rows = [f"{'part':24} {'CPU ms an image':>15} {'net of idle':>12} {'idle, % of a core':>18}"]
    for part, ms in sorted(costs.cpu_ms.items(), key=lambda item: -item[1]):
        idle = costs.idle_cores.get(part, 0.0) * 100
        rows.append(f"{part:24} {ms:15.2f} {costs.net_cpu_ms[part]:12.2f} {idle:18.1f}")
    total, net, idle = sum(costs.cpu_ms.values()), sum(costs.net_cpu_ms.values()), 100 * sum(costs.idle_cores.values())
    rows.append(f"{'together':24} {total:15.2f} {net:12.2f} {idle:18.1f}")
    passes = ", ".join(f"{ms:.1f} ms at batch {batch}" for batch, ms in costs.engine_ms)
    rows.append(
        f"engine alone: {passes}, {costs.engine_cpu_ms:.1f} CPU ms an image; outside it: {costs.outside_engine_ms:.1f} ms net"
    )
    rows.append(
        f"{costs.images_per_s:.1f} images/s; bytes: " + ", ".join(f"{hop} {size:,}" for hop, size in costs.hop_bytes.items())
    )
    return "\n".join(rows)


def read_costs(path: Path) -> tuple[Costs, dict[str, Any]]:
    """Read the output of `python -m loadtest costs --output`: costs and machine.

    Raises:
        CommandFault: the file holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        fields = document["costs"]
        return Costs(**fields | {"engine_ms": [(batch, ms) for batch, ms in fields["engine_ms"]]}), document["machine"]
    except (ValueError, KeyError, TypeError) as error:
        raise CommandFault(f"{path} holds no costs; `python -m loadtest costs --output FILE` measures them") from error


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit status."""
    machine = describe_machine()
    photos = photos_from(args.images)
    print_progress("measuring for about a minute")
    try:
        costs = measure_costs(photos, args.clients, args.images_per_request, args.count, args.config, args.urls)
    except ServiceError as error:
        print(f"{args.config}: {error}", file=sys.stderr)
        return 2
    print(as_table(costs))
    print_results({"machine": machine, "costs": asdict(costs)}, args.output)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m loadtest costs`."""
    parser.add_argument("--clients", type=count, default=16, help="closed-loop clients (default: %(default)s)")
    parser.add_argument("--images-per-request", type=count, default=1, help="(default: %(default)s)")
    parser.add_argument("--urls", action="store_true", help="send URLs of an image server on this machine instead of base64")
    parser.add_argument("--count", type=count, default=320, help="images to answer (default: %(default)s)")
    parser.add_argument("--images", type=Path, help="folder of photos (default: generated 640x480 ones)")
    parser.add_argument("--config", type=Path, default=SHIPPED_CONFIG, help="serve_config.yaml (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the JSON here, for python -m loadtest plan --costs")
