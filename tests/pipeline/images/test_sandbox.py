"""A compromised decoder can reach nothing but its socket."""

import ctypes
import io
import logging
import platform
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.images import decoder_pool, sandbox
from pipeline.images.decode import DecodeLimits
from pipeline.images.decoder_options import DecoderOptions
from pipeline.images.decoder_pool import DecoderProcess
from pipeline.images.load import load_image
from pipeline.images.sandbox import Sandbox

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() not in sandbox._MACHINES, reason="Landlock and seccomp are Linux's"
)

PROGRAM = """
import ctypes, mmap, os, signal, socket, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pipeline.images import sandbox

secret = Path(sys.argv[1])
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("")
abstract.listen()
earlier = ThreadPoolExecutor(1)
earlier.submit(int).result()
libc = ctypes.CDLL(None, use_errno=True)

def fail():
    raise OSError(ctypes.get_errno(), "failed")

held = {confine}
try:
    {deed}
    said = "done"
except OSError as error:
    said = type(error).__name__
os.write(1, f"{{int(held)}} {{said}}".encode())
os._exit(0)
"""
LANDLOCK = "libc.prctl(38, 1, 0, 0, 0) or sandbox._deny_paths(libc)"
SECCOMP = "libc.prctl(38, 1, 0, 0, 0) or sandbox._deny_calls(libc)"
FILE_DEEDS = {
    "read a file": "secret.read_bytes()",
    "list a folder": "os.listdir(secret.parent)",
    "write a file": "(secret.parent / 'new').write_bytes(b'')",
    "make a folder": "(secret.parent / 'new').mkdir()",
    "remove a file": "secret.unlink()",
    "rename a file": "secret.rename(secret.parent / 'other')",
    "truncate a file": "os.truncate(secret, 0)",
    "link a file": "os.symlink(secret, secret.parent / 'link')",
    "read the environment of a process": "Path(f'/proc/{os.getppid()}/environ').read_bytes()",
}
CALL_DEEDS = {
    "open a TCP socket": "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "open a UDP socket": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "open a Unix socket": "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)",
    "ask the kernel over netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "accept a connection": "listener.accept()",
    "fork": "os.fork()",
    "start a program": "os.execv('/bin/true', ['true'])",
    "spawn a program": "os.posix_spawn('/bin/true', ['true'], {})",
    "signal another process": "os.kill(os.getppid(), signal.SIGCONT)",
    "make a file in memory": "os.memfd_create('x')",
    "share memory, which has no limit": "mmap.mmap(-1, 2**30)",
    "grow a stack, which has no limit": "mmap.mmap(-1, 2**30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100)",
    "signal a thread of another process": "libc.tgkill(os.getppid(), os.getppid(), signal.SIGCONT) and fail()",
    "open a socket in an earlier thread": "earlier.submit(socket.socket).result()",
}
LANDLOCK_DEEDS = FILE_DEEDS | {
    "bind a TCP port": "socket.socket().bind(('127.0.0.1', 0))",
    "connect to a TCP port": "socket.socket().connect(listener.getsockname())",
    "reach an abstract socket": "socket.socket(socket.AF_UNIX).connect(abstract.getsockname())",
    "signal another process": CALL_DEEDS["signal another process"],
}
LANDLOCK_SINCE = {
    "truncate a file": 3,
    "bind a TCP port": 4,
    "connect to a TCP port": 4,
    "reach an abstract socket": 6,
    "signal another process": 6,
}
"""Versions of Landlock, where not the first."""


def confined(deed, secret, confine="sandbox.confine_process()"):
    """What holds a process that confined itself, and what came of the deed: `done`, or the name of the error."""
    code = PROGRAM.format(confine=confine, deed=deed)
    run = subprocess.run([sys.executable, "-c", code, str(secret)], capture_output=True, text=True, check=True, timeout=60)
    held, said = run.stdout.split()
    return Sandbox(int(held)), said


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text("key")
    return path


@pytest.mark.parametrize("deed", [pytest.param(deed, id=name) for name, deed in (FILE_DEEDS | CALL_DEEDS).items()])
def test_nothing_can_be_reached(deed, secret):
    """Everything that a program beyond this process would be reached by fails, and nothing has changed."""
    held, said = confined(deed, secret)
    if Sandbox.SECCOMP not in held:
        pytest.skip("this kernel has no seccomp")
    assert said == "PermissionError"
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]
    assert secret.read_text() == "key"


@pytest.mark.parametrize("name", LANDLOCK_DEEDS)
def test_landlock_alone_denies_what_its_version_can(name, secret):
    """On a machine whose system call numbers we do not know."""
    version = ctypes.CDLL(None).syscall(sandbox._LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), sandbox._RULESET_VERSION)
    if version < LANDLOCK_SINCE.get(name, 1):
        pytest.skip("this kernel's Landlock cannot")
    assert confined(LANDLOCK_DEEDS[name], secret, LANDLOCK) == (Sandbox.LANDLOCK, "PermissionError")
    assert secret.read_text() == "key"


def test_both_are_in_effect_where_the_kernel_has_both(secret):
    """One hides that the other is missing."""
    assert confined("pass", secret)[0] == confined("pass", secret, LANDLOCK)[0] | confined("pass", secret, SECCOMP)[0]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the 32-bit system calls of x86")
def test_calls_of_another_architecture_end_the_process(secret):
    """Their numbers mean other calls: int 0x80 with 20 is getpid there, and writev for the filter."""
    if confined("pass", secret, SECCOMP)[0] is Sandbox.NONE:
        pytest.skip("this kernel has no seccomp")
    code = """m = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
    m.write(bytes.fromhex("b814000000cd80c3"))
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"""
    with pytest.raises(subprocess.CalledProcessError) as ended:
        confined(code, secret, SECCOMP)
    assert ended.value.returncode in (-signal.SIGSYS, -signal.SIGSEGV)  # the second where the kernel has no 32-bit calls


def test_seccomp_alone_forbids_signals(secret):
    """On a kernel without Landlock, or with one that does not restrict signals (before 6.12)."""
    held, said = confined(CALL_DEEDS["signal a thread of another process"], secret, SECCOMP)
    if held is Sandbox.NONE:
        pytest.skip("this kernel has no seccomp")
    assert (held, said) == (Sandbox.SECCOMP, "PermissionError")


def test_threads_and_memory_work(secret):
    """Codecs use both."""
    deed = "t = threading.Thread(target=bytearray, args=(2**24,)); t.start(); t.join()"
    assert confined(deed, secret)[1] == "done"


def saved(name, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)).convert(mode).save(
        file, name, **options
    )
    return file.getvalue()


@pytest.fixture(scope="module")
def decoder():
    process = DecoderProcess(DecoderOptions(DecodeLimits(), size=320, timeout_s=10.0))
    yield process
    process.close()


EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E] = 6, "naïve"
FILES = {
    "JPEG": ("JPEG", {"exif": EXIF}),
    "progressive JPEG": ("JPEG", {"progressive": True}),
    "grey JPEG": ("JPEG", {"mode": "L"}),
    "CMYK JPEG": ("JPEG", {"mode": "CMYK"}),
    "several pictures": ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (400, 300))]}),
    "PNG": ("PNG", {"exif": EXIF}),
    "palette": ("PNG", {"mode": "P"}),
    "alpha": ("PNG", {"mode": "RGBA"}),
    "16 bits": ("PNG", {"mode": "I;16"}),
    "WebP": ("WEBP", {}),
    "lossless WebP": ("WEBP", {"lossless": True}),
    "animated WebP": ("WEBP", {"save_all": True, "append_images": [Image.new("RGB", (400, 300))]}),
    "GIF": ("GIF", {}),
    "BMP": ("BMP", {}),
    "AVIF": ("AVIF", {"exif": EXIF}),
    "TIFF": ("TIFF", {"exif": EXIF}),
    "Lab TIFF": ("TIFF", {"mode": "LAB"}),
    "LZW TIFF": ("TIFF", {"compression": "tiff_lzw"}),
    "JPEG in TIFF": ("TIFF", {"compression": "jpeg"}),
    "float TIFF": ("TIFF", {"mode": "F"}),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_decoded_inside(decoder, name):
    """All modules that codecs and converters need are imported before."""
    kind, options = FILES[name]
    data = saved(kind, **options)
    np.testing.assert_array_equal(decoder.load(data).pixels, load_image(data, DecodeLimits(), 320).pixels)


def test_a_kernel_without_it_is_reported(monkeypatch, caplog):
    """One warning for each that is missing; decoding goes on."""
    monkeypatch.setattr(
        decoder_pool,
        "PROGRAM",
        (sys.executable, "-c", "from pipeline.images import decoder_worker as w; w.confine_process = lambda: 2; w.main()"),
    )
    process = DecoderProcess(DecoderOptions(DecodeLimits(), size=320, timeout_s=10.0), decoder_pool.PROGRAM)
    try:
        with caplog.at_level(logging.WARNING):
            process.load(saved("PNG"))
    finally:
        process.close()
    assert [record.getMessage().split(": ")[0].split(" ", 3)[3] for record in caplog.records] == ["runs without LANDLOCK"]
