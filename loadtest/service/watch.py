"""Samples what a service on this machine uses under load: replicas, CPU and memory by part, every second.

with Watch(service.processes) as watch: …load…        watch.samples
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import psutil

from deployments.settings import DEPLOYMENTS
from loadtest.service.parts import part_of
from loadtest.service.scrape import STAGE_TAGS, Snapshot

INTERVAL_S = 1.0

Processes = Callable[[], Sequence[psutil.Process]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample.

    Args:
        at_s: since the watch began.
        replicas: processes of each deployment.
        cores: cores used since the last sample, by part (loadtest.service.parts.part_of).
        memory_mb: resident memory that is not shared, by part, MB (1e6 bytes).
    """

    at_s: float
    replicas: dict[str, int]
    cores: dict[str, float]
    memory_mb: dict[str, float]


class Watch:
    """Samples every `interval_s` while a block runs; the first sample is at its beginning.

    Args:
        processes: returns the service's processes; called for each sample, because replicas change.
    """

    def __init__(self, processes: Processes, interval_s: float = INTERVAL_S) -> None:
        self._processes, self._interval_s = processes, interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._cpu_s: dict[int, float] = {}
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._began = self._looked = time.perf_counter()
        self._look()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._look()

    def _look(self) -> None:
        now = time.perf_counter()
        passed_s, self._looked = now - self._looked, now
        replicas: Counter[str] = Counter()
        cores: dict[str, float] = defaultdict(float)
        memory_mb: dict[str, float] = defaultdict(float)
        seen: dict[int, float] = {}
        for process in self._processes():
            try:
                with process.oneshot():
                    part, memory, times = part_of(process), process.memory_info(), process.cpu_times()
            except psutil.Error:  # it has just ended
                continue
            seen[process.pid] = times.user + times.system
            replicas[part] += part in DEPLOYMENTS
            memory_mb[part] += (memory.rss - memory.shared) / 1e6
            if self.samples:
                cores[part] += (seen[process.pid] - self._cpu_s.get(process.pid, 0.0)) / passed_s
        self._cpu_s = seen
        counts = {name: replicas[name] for name in DEPLOYMENTS if replicas[name]}
        self.samples.append(Sample(now - self._began, counts, dict(cores), dict(memory_mb)))


def watched(samples: Sequence[Sample], during: Snapshot) -> dict[str, Any]:
    """A watched run for a report, JSON-ready: `samples`, `batches` and `stages`.

    Args:
        during: metrics after the run less those before it.
    """
    return {
        "samples": [asdict(sample) for sample in samples],
        "batches": {"mean": during.mean_batch, "sizes": during.sizes.counts, "waits_ms": during.waits.counts},
        "stages": {
            stage: {
                "images": during.images.get(stage, 0),
                "p50_ms": during.latencies[stage].quantile(0.5),
                "p99_ms": during.latencies[stage].quantile(0.99),
            }
            for stage in STAGE_TAGS
            if stage in during.latencies
        },
    }


def processes_here() -> list[psutil.Process]:
    """Ray's processes of this user on this machine, for a service not started here."""
    signs = ("ray::", "raylet", "gcs_server", "haproxy", "pipeline.images.decoder_worker", "ray/dashboard", "ray/_private")
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(sign in " ".join(process.info["cmdline"] or ()) for sign in signs)
    ]
