"""Memory of a running service's processes: unique set size, what each would give back if it ended (shared pages left out)."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psutil

from loadtest.local_service import LocalService

INTERVAL_S = 0.1
MB = 1e6


def replica_memory_mb(service: LocalService) -> dict[str, float]:
    """MB (1e6 bytes) of each replica, proxy and decoder, by name and process id."""
    found = {}
    for process in _workers(service):
        try:
            found[f"{_name(process)} {process.pid}"] = process.memory_full_info().uss / MB
        except psutil.Error:
            continue
    return dict(sorted(found.items()))


class MemoryWatch:
    """Watches the sum while a block runs. `grown_mb`: its highest value less its first, MB."""

    def __init__(self, service: LocalService) -> None:
        self._service = service
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.grown_mb = 0.0

    def __enter__(self) -> Self:
        self._first = self._now_mb()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self.grown_mb = max(self.grown_mb, self._now_mb() - self._first)

    def _now_mb(self) -> float:
        total = 0.0
        for process in _workers(self._service):
            try:
                total += (process.memory_info().rss - process.memory_info().shared) / MB
            except psutil.Error:
                continue
        return total


def _workers(service: LocalService) -> list[psutil.Process]:
    return [process for process in service.processes() if _name(process)]


def _name(process: psutil.Process) -> str:
    """`Ingress`, `ImageLoader`, …, `proxy`, `decoder`; empty for Ray's own processes."""
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return ""
    if "pipeline.decoder_child" in title:
        return "decoder"
    if "ProxyActor" in title:
        return "proxy"
    return title.partition("ServeReplica:")[2].rpartition(":")[2].split()[0] if "ServeReplica:" in title else ""
