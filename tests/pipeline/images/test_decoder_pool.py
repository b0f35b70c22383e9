"""Decoding in separate processes: the same pixels; a crash, a hang or a false answer fails only one image."""

import io
import os
import pickle
import resource
import signal
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.errors import ConfigurationError, DecodersUnavailable, ImageError, LimitExceeded, StageFailed
from pipeline.images import decoder_pool
from pipeline.images.decode import DecodeLimits
from pipeline.images.decoder_options import DecoderOptions
from pipeline.images.decoder_pool import DecoderLost, DecoderPool, DecoderProcess, DecoderTimeout
from pipeline.images.decoder_worker import STACK_BYTES
from pipeline.images.load import load_image

OPTIONS = DecoderOptions(DecodeLimits(max_pixels=1_000_000), size=320, timeout_s=1.0)
BAD_PROGRAM = (sys.executable, str(Path(__file__).parents[2] / "support" / "bad_decoder.py"))


def png(size_wh=(64, 48)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size_wh[::-1], 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def decoder():
    """One process for the tests that leave it alive."""
    process = DecoderProcess(OPTIONS)
    yield process
    process.close()


@pytest.fixture
def bad_decoder():
    process = DecoderProcess(OPTIONS, BAD_PROGRAM)
    process.load(png())
    yield process
    process.close()


def test_same_as_in_process(decoder):
    """Pixels and geometry are those of load_image."""
    here, there = load_image(png(), OPTIONS.limits, 320), decoder.load(png())
    np.testing.assert_array_equal(here.pixels, there.pixels)
    assert here.letterbox == there.letterbox


@pytest.mark.parametrize(
    ("data", "error", "code"),
    [
        pytest.param(b"no image", ImageError, "unsupported_image_format", id="no image"),
        pytest.param(png()[:-30], ImageError, "image_not_decodable", id="truncated"),
        pytest.param(png((1200, 900)), LimitExceeded, "too_many_pixels", id="too many pixels"),
        pytest.param(b"", ImageError, "unsupported_image_format", id="nothing"),
    ],
)
def test_errors_cross_the_border(decoder, data, error, code):
    """What load_image raises arrives with its type, code and message, and the process lives on."""
    pid = decoder.pid
    with pytest.raises(error) as there:
        decoder.load(data)
    with pytest.raises(error) as here:
        load_image(data, OPTIONS.limits, 320)
    assert (there.value.code, there.value.message) == (code, here.value.message)
    assert decoder.pid == pid


@pytest.mark.parametrize("deed", [b"CRASH!", b"ABORT!", b"EXIT!!"])
def test_a_crash_costs_one_image(bad_decoder, deed):
    """A decoder that dies is a 422 for its image; the next image finds a new one."""
    before = bad_decoder.pid
    with pytest.raises(DecoderLost) as caught:
        bad_decoder.load(deed)
    assert (caught.value.status, caught.value.code) == (422, "image_not_decodable")
    assert bad_decoder.load(png()).letterbox.original_hw == (48, 64)
    assert bad_decoder.pid != before
    assert not psutil.pid_exists(before)


@pytest.mark.parametrize("deed", [b"HANG!!", b"SPIN!!"])
def test_a_runaway_is_ended(bad_decoder, deed):
    """A decoder that never answers is killed after timeout_s; the message names the setting."""
    before, began = bad_decoder.pid, time.monotonic()
    with pytest.raises(DecoderLost, match="decode_timeout_s"):
        bad_decoder.load(deed)
    assert 1.0 <= time.monotonic() - began < 10.0
    assert not psutil.pid_exists(before)
    assert bad_decoder.load(png()).letterbox.original_hw == (48, 64)


@pytest.fixture(scope="module")
def background_decoder():
    with closing(DecoderProcess(replace(OPTIONS, background=True), BAD_PROGRAM)) as process:
        yield process


def test_a_background_decoder_yields_the_cores(background_decoder):
    """It has the idle priority, also after it was replaced."""
    background_decoder.load(png())
    assert os.sched_getscheduler(background_decoder.pid) == os.SCHED_IDLE
    with pytest.raises(DecoderLost):
        background_decoder.load(b"EXIT!!")
    background_decoder.load(png())
    assert os.sched_getscheduler(background_decoder.pid) == os.SCHED_IDLE


def test_time_in_the_background_is_cpu_time(background_decoder):
    """One that computes is ended after timeout_s of CPU time, if it gets so much; one that only waits, after three times that."""
    with pytest.raises(DecoderTimeout, match=r"more than [13] s to decode"):
        background_decoder.load(b"SPIN!!")
    with pytest.raises(DecoderTimeout, match="more than 3 s to decode"):
        background_decoder.load(b"HANG!!")


def test_memory_is_bounded(bad_decoder):
    """A decoder that wants 8 GiB does not get them."""
    with pytest.raises(StageFailed):
        bad_decoder.load(b"MEMORY")
    assert bad_decoder.load(png()).letterbox.original_hw == (48, 64)


def test_the_stack_is_bounded():
    """Also where the service has no limit for it: the limit of memory does not count it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))
    try:
        process = DecoderProcess(OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
    with closing(process):
        process.load(png())
        assert resource.prlimit(process.pid, resource.RLIMIT_STACK)[0] == STACK_BYTES


def test_a_bug_is_a_500_and_its_text_stays_here(bad_decoder, caplog):
    """An unexpected exception becomes StageFailed; its text is only logged."""
    with pytest.raises(StageFailed) as caught:
        bad_decoder.load(b"BUG!!!")
    assert "unexpected failure" not in caught.value.message
    assert "unexpected failure" in caplog.text


def test_a_process_killed_while_idle_is_replaced(decoder):
    """No image fails because of it."""
    os.kill(decoder.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(decoder.pid)], timeout=5)
    assert decoder.load(png()).letterbox.original_hw == (48, 64)


def test_a_program_that_does_not_start_is_our_fault(caplog):
    """Not the image's: StageFailed, and the log says so."""
    process = DecoderProcess(OPTIONS, (sys.executable, "-c", "import sys; sys.exit(7)"))
    with pytest.raises(StageFailed):
        process.load(png())
    assert "does not start" in caplog.text
    process.close()


def test_no_process_can_be_started(bad_decoder, monkeypatch, caplog):
    """As without memory or process ids: the image that crashed the decoder has its own error, further ones that of the decoders."""
    with monkeypatch.context() as patch:
        patch.setattr(decoder_pool.subprocess, "Popen", Mock(side_effect=BlockingIOError("no process ids")))
        with pytest.raises(DecoderLost):
            bad_decoder.load(b"EXIT!!")
        for times in (1, 2):
            with pytest.raises(DecodersUnavailable):
                bad_decoder.load(png())
            assert bad_decoder.failed_starts == times
    assert "no process ids" in caplog.text
    assert bad_decoder.load(png()).letterbox.original_hw == (48, 64)
    assert bad_decoder.failed_starts == 0


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\xff\xff\xff\xff", id="4 GB of JSON"),
        pytest.param(b"\0\0\0\2{}", id="neither"),
        pytest.param(b"\0\0\0\5[1,2]", id="list"),
        pytest.param(b"\0\0\0\3no!", id="not JSON"),
        *(
            pytest.param(struct.pack("!I", len(text)) + text, id=text.decode())
            for text in (
                b'{"original_hw":[1,99999999999]}',
                b'{"original_hw":[-4,-4]}',
                b'{"original_hw":[0,4]}',
                b'{"original_hw":[2000,2000]}',
                b'{"original_hw":[NaN,4]}',
                b'{"original_hw":[1e400,4]}',
                b'{"original_hw":[4]}',
                b'{"original_hw":"ab"}',
                b'{"error":"ImageError","message":"m","code":"new_in_the_metrics"}',
                b'{"error":"ImageError","message":["m"],"code":"too_many_pixels"}',
                b'{"error":"ImageError","message":"m","code":["too_many_pixels"]}',
            )
        ),
        pytest.param(b'\0\0\0\x16{"error":"ShapeError"}', id="foreign error"),
    ],
)
def test_lies_are_not_believed(answer):
    """False answers of a compromised decoder are refused; nothing is unpickled, nothing large is allocated."""
    script = (
        f"import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.sendall(b'\\1' + {answer!r}); s.recv(9); s.close()"
    )
    process = DecoderProcess(OPTIONS, (sys.executable, "-c", script))
    with pytest.raises((DecoderLost, StageFailed)):
        process.load(png())
    process.close()


@pytest.mark.parametrize(
    ("size", "deed"),
    [
        pytest.param(8 * 2**20, "time.sleep(60)", id="reads nothing"),
        pytest.param(1, "s.sendall(b'\\0\\0\\xff\\0'); [(s.sendall(b' '), time.sleep(0.1)) for _ in range(600)]", id="drips"),
    ],
)
def test_a_compromised_decoder_holds_nobody_up(size, deed):
    """Not by taking none of a long file, nor by answering byte after byte."""
    script = f"import socket, sys, time; s = socket.socket(fileno=int(sys.argv[1])); s.sendall(b'\\1'); {deed}"
    with closing(DecoderProcess(OPTIONS, (sys.executable, "-c", script))) as process:
        began = time.monotonic()
        with pytest.raises(DecoderTimeout, match=r"more than 0\.5 s"):
            process.load(bytes(size), timeout_s=0.5)
        assert time.monotonic() - began < 10


def test_decoders_do_not_see_keys(monkeypatch):
    """The environment of the service, where keys may stand, does not reach them."""
    monkeypatch.setenv("PRIMARY_KEY", "sesame")
    process = DecoderProcess(OPTIONS)
    process.load(png())
    assert "PRIMARY_KEY" not in psutil.Process(process.pid).environ()
    process.close()


def test_a_pool_decodes_side_by_side():
    """A runaway blocks its own process only."""
    pool = DecoderPool(OPTIONS, 2, BAD_PROGRAM)
    pool.load(png())
    outcome = []

    def run_away():
        with pytest.raises(DecoderLost):
            pool.load(b"HANG!!")
        outcome.append("ended")

    thread = threading.Thread(target=run_away)
    thread.start()
    time.sleep(0.1)
    pool.load(png())
    assert not outcome
    thread.join()
    pids = pool.pids
    pool.close()
    assert outcome == ["ended"]
    assert not any(map(psutil.pid_exists, pids))


def test_a_process_that_starts_is_chosen_last():
    """After a crash the next image goes to the other process, which is ready."""
    with closing(DecoderPool(OPTIONS, 2, BAD_PROGRAM)) as pool:
        with ThreadPoolExecutor() as threads:
            list(threads.map(pool.load, [png()] * 2))
        with pytest.raises(DecoderLost):
            pool.load(b"EXIT!!")
        pool.load(png())
        assert sorted(process.is_ready for process in pool._processes) == [False, True]


def test_decoders_end_with_their_owner():
    """If the owner was killed, the socket closes and the decoder exits."""
    process = DecoderProcess(OPTIONS)
    process.load(png())
    child = psutil.Process(process.pid)
    process._socket.close()
    psutil.wait_procs([child], timeout=5)
    assert process._process.poll() == 0
    process.close()


def test_largest_image_fits_the_memory_limit():
    """The limit that a decoder sets itself leaves room for the worst image that the other limits allow."""
    options = DecoderOptions(DecodeLimits(max_pixels=16_000_000), 640, 60.0)
    process = DecoderProcess(options)
    for mode, kind in (("RGBA", "PNG"), ("I;16", "PNG"), ("CMYK", "TIFF"), ("RGB", "WEBP")):
        file = io.BytesIO()
        Image.new(mode, (4000, 4000)).save(file, kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {}))
        assert process.load(file.getvalue()).letterbox.original_hw == (4000, 4000)
    process.close()


def test_options_and_errors_travel():
    """Options survive JSON, the new error survives pickling; nonsense is refused."""
    assert DecoderOptions.from_json(OPTIONS.as_json()) == OPTIONS
    assert isinstance(pickle.loads(pickle.dumps(DecoderLost("gone"))), DecoderLost)
    with pytest.raises(ConfigurationError):
        DecoderOptions(OPTIONS.limits, 320, 0)
    with pytest.raises(ConfigurationError):
        DecoderOptions(OPTIONS.limits, 5000, 1.0)
