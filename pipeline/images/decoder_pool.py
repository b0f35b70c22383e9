"""Decodes images in separate processes, so that a decoder that crashes or hangs fails only one image.

    load_image(data) ─▶ DecoderPool ─▶ a free DecoderProcess ══ socket ═══════════▶ pipeline.images.decoder_worker
                                            │       LoadedImage ◀══ shared memory ═══╝
                                            │ crashed, or too slow: killed, a new one starts
                                            └▶ ImageError for that image

Processes, not threads, because only a process can be killed, and because malicious files exploit bugs in the codecs' C code. Measured
(2 cores, 640 x 480 JPEG to 640 px, best of 200): 1.8 ms instead of 1.5 ms in this process; 30 MB of memory per process.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from pipeline.errors import DecodersUnavailable, ImageError, LargeImage, LimitExceeded, ServiceError, StageFailed
from pipeline.images.decode import check_pixel_count
from pipeline.images.decoder_options import DecoderOptions
from pipeline.images.decoder_worker import ANSWER_HEAD, REQUEST_HEAD
from pipeline.images.letterbox import make_letterbox
from pipeline.images.sandbox import Sandbox
from pipeline.images.shared_pixels import make_shared_pixels, map_shared_pixels
from pipeline.types import Letterbox, LoadedImage

logger = logging.getLogger(__name__)

PROGRAM = (sys.executable, "-m", "pipeline.images.decoder_worker")
START_TIMEOUT_S = 60.0
MAX_ANSWER_CHARS = 65_536
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""The only environment variables that a decoder gets; no keys or tokens."""

KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(8 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Settings of the C library: a decoder keeps blocks up to the first size, bytes, and free memory up to the second, for the next image.
Larger blocks are in huge pages, if the kernel allows it: a WebP of 40 megapixels takes 83 ms instead of 130, and 1,400 page faults instead
of 30,000."""

_ERRORS: Mapping[str, type[ServiceError]] = {kind.__name__: kind for kind in (ImageError, LargeImage, LimitExceeded)}
CODES = ("image_not_decodable", "unsupported_image_format", "image_too_large", "too_many_pixels")
"""Codes of these errors. Any other would become a new time series of the metrics."""
MAX_MESSAGE_CHARS = 500
_INVALID_ANSWER = (OSError, EOFError, ValueError, LookupError, TypeError, OverflowError)
"""Exceptions while reading an answer, if the process died or was compromised and writes invalid data."""


class DecoderLost(ImageError):
    """An image crashed its decoder, or took too long to decode; see `__cause__`."""


class DecoderTimeout(DecoderLost):
    """An image took too long to decode."""


class DecoderPool:
    """A pool of decoder processes; thread-safe.

    Args:
        options: limits and time for each image.
        count: number of processes.
        program: command to start, without its arguments; tests use another one.
    """

    def __init__(self, options: DecoderOptions, count: int, program: Sequence[str] = PROGRAM) -> None:
        self._processes = [DecoderProcess(options, program) for _ in range(count)]
        self._free: queue.PriorityQueue[tuple[bool, int]] = queue.PriorityQueue()
        """Numbers of the free processes, those that are ready first: a new one needs half a second to start, or more."""
        for number in range(count):
            self._free.put((True, number))

    @property
    def pids(self) -> list[int]:
        """Ids of the current processes."""
        return [process.pid for process in self._processes]

    def load(
        self, data: bytes, *, timeout_s: float | None = None, max_ordinary_pixels: int | None = None, size: int | None = None
    ) -> LoadedImage:
        """Decode and scale one image in a free process, see DecoderProcess.load. Blocks until one is free; that time does not count."""
        _, number = self._free.get()
        process = self._processes[number]
        try:
            return process.load(data, timeout_s=timeout_s, max_ordinary_pixels=max_ordinary_pixels, size=size)
        finally:
            self._free.put((not process.is_ready, number))

    @property
    def failed_starts(self) -> int:
        """Failed starts in a row, of the process with the most."""
        return max(process.failed_starts for process in self._processes)

    @property
    def memory_bytes(self) -> int:
        """Resident memory of all running processes, bytes."""
        pages = 0
        for pid in self.pids:
            with suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()


class DecoderProcess:
    """One decoder process and the socket to it; restarted when it dies. For one thread at a time.

    Attributes:
        failed_starts: starts in a row that ended before the process could decode.
        is_ready: whether it has finished its imports, as far as is known.
    """

    def __init__(self, options: DecoderOptions, program: Sequence[str] = PROGRAM) -> None:
        self._options = options
        self._program = program
        self._shared_file = make_shared_pixels()
        self._shared = map_shared_pixels(self._shared_file.fileno())
        self.failed_starts = 0
        self.is_ready = False
        self._start()

    @property
    def pid(self) -> int:
        """Process id; another one after a restart."""
        return self._process.pid

    def load(
        self, data: bytes, *, timeout_s: float | None = None, max_ordinary_pixels: int | None = None, size: int | None = None
    ) -> LoadedImage:
        """Decode and scale one image.

        Args:
            data: an encoded image file.
            timeout_s: a shorter time limit than that of the options, seconds.
            max_ordinary_pixels: see `DecodeLimits`.
            size: side of the square that the image is scaled to fit, pixels; None takes that of the options.
        Returns:
            The image, scaled.
        Raises:
            ImageError, LimitExceeded, LargeImage: as `pipeline.images.load.load_image`.
            DecoderTimeout: the decoder took too long.
            DecoderLost: it crashed.
            DecodersUnavailable: the decoder cannot be started; logged.
            StageFailed: the decoder raised an unexpected exception; logged.
        """
        self._make_ready()
        limit_s = min(timeout_s or math.inf, self._options.wall_timeout_s)
        try:
            head = REQUEST_HEAD.pack(len(data), max_ordinary_pixels or 0, size or self._options.size)
            letterbox, pixels = self._exchange(head, data, size or self._options.size, time.monotonic() + limit_s)
        except TimeoutError as error:
            self._replace()
            raise _timeout(limit_s) from error
        except _INVALID_ANSWER as error:
            if (ended := self._replace()) == signal.SIGPROF.name:
                raise _timeout(self._options.timeout_s) from error
            raise DecoderLost(f"The image crashed its decoder ({ended}).") from error
        return LoadedImage(pixels, letterbox)

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
        self._shared_file.close()

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            descriptors = (theirs.fileno(), self._shared_file.fileno())
            command = [*self._program, *map(str, descriptors), self._options.as_json()]
            self._process = subprocess.Popen(
                command, pass_fds=descriptors, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )

    def _make_ready(self) -> None:
        """Wait for a new process to finish its imports, and replace one that died while it was idle."""
        if self._process.poll() is not None:
            self._replace()
        if self.is_ready:
            return
        try:
            sandbox = Sandbox(self._receive(1, time.monotonic() + START_TIMEOUT_S)[0])
        except (OSError, EOFError) as error:
            logger.error("a decoder process does not start (%s); see its standard error", self._replace())
            self.failed_starts += 1
            raise DecodersUnavailable("The service cannot decode images now.") from error
        self.failed_starts = 0
        self.is_ready = True
        for missing in ~sandbox:
            logger.warning("decoder process %d runs without %s: this kernel does not support it", self.pid, missing.name)

    def _exchange(self, head: bytes, data: bytes, size: int, deadline: float) -> tuple[Letterbox, np.ndarray]:
        for part in (head, data):
            self._socket.settimeout(_remaining_s(deadline))
            self._socket.sendall(part)
        (length,) = ANSWER_HEAD.unpack(self._receive(ANSWER_HEAD.size, deadline))
        if length > MAX_ANSWER_CHARS:
            raise EOFError("invalid answer of a decoder process")
        document = orjson.loads(self._receive(length, deadline))
        if "error" in document:
            raise _error(document)
        letterbox = self._letterbox(document["original_hw"], size)
        height, width = letterbox.scaled_hw
        return letterbox, self._shared[: height * width * 3].reshape(height, width, 3).copy()

    def _letterbox(self, original_hw: Sequence[Any], size: int) -> Letterbox:
        """The letterbox of an image of this size.

        Raises:
            EOFError: such an image would have been refused. Its size must not be believed: the cost of a mask grows with it.
        """
        height, width = map(int, original_hw)
        try:
            check_pixel_count((width, height), self._options.limits.max_pixels)
        except ServiceError as error:
            raise EOFError("invalid answer of a decoder process") from error
        return make_letterbox((height, width), size)

    def _receive(self, count: int, deadline: float) -> bytes:
        received = b""
        while len(received) < count:
            self._socket.settimeout(_remaining_s(deadline))
            part = self._socket.recv(count - len(received))
            if not part:
                raise EOFError("the decoder closed its socket")
            received += part
        return received

    def _replace(self) -> str:
        """Kill the process and start a new one, if possible now, else for the next image; returns how the old one ended."""
        self._socket.close()
        self._process.kill()
        status = self._process.wait()
        self.is_ready = False
        try:
            self._start()
        except OSError as error:  # such as no memory, or too many processes
            logger.error("a decoder process cannot be started: %s", error)
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _timeout(limit_s: float) -> DecoderTimeout:
    return DecoderTimeout(f"The image took more than {limit_s:g} s to decode (image_loader.decode_timeout_s).")


def _error(document: Mapping[str, Any]) -> ServiceError:
    kind = _ERRORS.get(document["error"])
    if kind is None:
        logger.error("unexpected error in a decoder process: %s", document["message"])
        return StageFailed("The image_loader stage failed on this image.")
    message, code = document["message"], document["code"]
    if not isinstance(message, str) or code not in CODES:
        raise EOFError("invalid answer of a decoder process")
    return kind(message[:MAX_MESSAGE_CHARS], code=code)


def _remaining_s(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return kept | KEPT_MEMORY | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
