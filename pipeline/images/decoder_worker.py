"""The program of a decoder process: reads encoded images from a socket, writes pixels for the network.

    python -m pipeline.images.decoder_worker <socket's file descriptor> <that of the shared pixels> <JSON of DecoderOptions>

    in    8 bytes each, big-endian: length, max_ordinary_pixels of DecodeLimits or 0, size │ the encoded image
    out   4 bytes: length, big-endian │ JSON: original_hw, or error; the pixels (h, w, 3) uint8 are in the shared memory

First it sends one byte: the Sandbox in effect. No pickle in either direction: an attacker who takes over a decoder controls a process that
cannot open files or sockets (pipeline.images.sandbox) and can only send numbers. The process limits its own memory, writes no core files,
and exits with its parent.
"""

from __future__ import annotations

import codecs
import io
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image, MpoImagePlugin  # noqa: F401  (Pillow imports the second for a JPEG with several pictures)

from pipeline.errors import ServiceError
from pipeline.images.decode import FORMAT_MAGIC, DecodeLimits
from pipeline.images.decoder_options import DecoderOptions
from pipeline.images.load import load_image
from pipeline.images.sandbox import confine_process
from pipeline.images.shared_pixels import map_shared_pixels
from pipeline.types import LoadedImage

REQUEST_HEAD, ANSWER_HEAD = struct.Struct("!QQQ"), struct.Struct("!I")
BYTES_PER_PIXEL = 24
"""Memory limit per pixel of an image decoded at full size; twice UNSCALED_BYTES_PER_PIXEL, because reserved memory counts too."""
SPARE_BYTES, STACK_BYTES = 256 * 2**20, 8 * 2**20
METADATA_ENCODINGS = ("ascii", "latin-1", "utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252")
"""Encodings of text in metadata, loaded in advance: Python imports an encoding when it is first used."""

Load = Callable[[bytes, DecodeLimits, int], LoadedImage]


def serve(connection: socket.socket, shared: NDArray[np.uint8], options: DecoderOptions, load: Load = load_image) -> None:
    """Decode images into `shared`, (bytes,) uint8, until the other side closes the socket."""
    _load_codecs(options, load)
    if options.background:
        _yield_to_others()
    connection.sendall(bytes([confine_process()]))
    with connection.makefile("rb") as requests:
        while head := requests.read(REQUEST_HEAD.size):
            length, ordinary_pixels, size = REQUEST_HEAD.unpack(head)
            limits = replace(options.limits, max_ordinary_pixels=ordinary_pixels or None)
            signal.setitimer(signal.ITIMER_PROF, options.timeout_s)  # CPU time; ends the process by SIGPROF
            # SIGALRM ends a hanging process even if its parent is gone and cannot kill it.
            signal.setitimer(signal.ITIMER_REAL, 2 * options.wall_timeout_s)
            text = orjson.dumps(_answer(requests.read(length), limits, size, load, shared))
            connection.sendall(ANSWER_HEAD.pack(len(text)) + text)
            for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF):
                signal.setitimer(timer, 0)


def _yield_to_others() -> None:
    """Run only while a core is idle. Not before the imports: a service under load would not get its decoder."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # some container runtimes have no such class
        os.nice(19)


def _load_codecs(options: DecoderOptions, load: Load) -> None:
    """Decode a small image of each format, so that all modules are imported before the sandbox forbids opening files."""
    for encoding in METADATA_ENCODINGS:
        codecs.lookup(encoding)
    for name in FORMAT_MAGIC:
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, name, exif=Image.Exif().tobytes())
        load(file.getvalue(), options.limits, options.size)


def _answer(data: bytes, limits: DecodeLimits, size: int, load: Load, shared: NDArray[np.uint8]) -> dict[str, object]:
    try:
        image = load(data, limits, size)
    except ServiceError as error:
        return {"error": type(error).__name__, "code": error.code, "message": error.message}
    except Exception as error:
        return {"error": "bug", "message": f"{type(error).__name__}: {error}"[:500]}
    shared[: image.pixels.size].reshape(image.pixels.shape)[:] = image.pixels
    return {"original_hw": image.letterbox.original_hw}


def confine(options: DecoderOptions) -> None:
    """Drop what decoding does not need: memory beyond the largest image, core files, terminal signals, standard error.

    Codecs print messages about damaged files, which would fill the service's log; our errors go over the socket.
    """
    memory_bytes = (
        min(options.limits.max_pixels, options.limits.max_pixels_unscaled) * BYTES_PER_PIXEL
        + 4 * options.limits.max_bytes
        + SPARE_BYTES
    )
    for name, limit in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_STACK, STACK_BYTES), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(name)
        resource.setrlimit(name, (limit, hard) if hard == resource.RLIM_INFINITY else (min(limit, hard), hard))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    cv2.setNumThreads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def main(load: Load = load_image) -> None:
    """The program."""
    options = DecoderOptions.from_json(sys.argv[3])
    confine(options)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection, map_shared_pixels(int(sys.argv[2])), options, load)


if __name__ == "__main__":
    main()
