"""Attacks on a running service over HTTP, and checks of its responses.

files ─▶ POST /score, many a request, isolated ─┐
bodies ─▶ POST /score as they are ──────────────┼─▶ Verdicts: statuses, 5xx, leaks
SPECIALS: one large trick each ─────────────────┘   Outcome: status, code, seconds
"""

from __future__ import annotations

import base64
import io
import itertools
import random
import re
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson
import requests
from PIL import Image

from tests.support.request_body import as_body

LEAK = re.compile(r'Traceback|File "|/(home|root|tmp|work|usr|opt|var)/|site-packages|\.py\b|0x[0-9a-f]{8}|127\.0\.0\.1|\bray\.')
"""Patterns that no response may contain: paths, tracebacks, object and network addresses."""

JSON = {"content-type": "application/json"}
FILES_PER_REQUEST = 32
CLIENTS = 3
PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the answers of a campaign were.

    Args:
        answers: images or bodies that were answered.
        server_errors: answers of status 500 and above, or none at all.
        leaks: what answers told that they should not, each once.
        counts: answers by status or, for images, by error code.
        seconds: time of the campaign.
    """

    answers: int
    server_errors: int
    leaks: list[str]
    counts: dict[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one large attack ended: status and code of the answer, seconds until it, and the service's growth, MB."""

    name: str
    status: int
    code: str
    seconds: float
    grown_mb: float


def encoded_body(images: Sequence[bytes | str], **params: object) -> bytes:
    """A request for encoded images (bytes) and URLs (str)."""
    return orjson.dumps(as_body(images, **params))


def attack_with_files(url: str, files: Sequence[bytes]) -> Verdicts:
    """Score files, many a request, each image answering for itself."""
    batches = [files[start : start + FILES_PER_REQUEST] for start in range(0, len(files), FILES_PER_REQUEST)]
    return _campaign(url, [encoded_body(batch, on_error="isolate") for batch in batches])


def attack_with_bodies(url: str, count: int, seed: int) -> Verdicts:
    """Send bodies of random bytes, random JSON, and damaged good requests."""
    chance = random.Random(seed)
    return _campaign(url, [random_body(chance) for _ in range(count)])


def random_body(chance: random.Random) -> bytes:
    """One malicious body."""
    match chance.randrange(4):
        case 0:
            return chance.randbytes(chance.randrange(0, 2000))
        case 1:
            return orjson.dumps(_random_json(chance, 5))
        case 2:
            table = {"columns": ["image"], "data": ["aGk="], "index": [0]}
            table[chance.choice(["columns", "data", "index", "x"])] = _random_json(chance, 3)
            return orjson.dumps({"input_data": table, "params": _random_params(chance)})
        case _:
            good = bytearray(encoded_body([b"no image", "http://10.0.0.1/x.jpg"], on_error="isolate"))
            for _ in range(chance.choice((1, 3, 20))):
                good[chance.randrange(len(good))] = chance.randrange(256)
            return bytes(good[: chance.randrange(1, len(good) + 1)])


def _random_json(chance: random.Random, depth: int) -> Any:
    kinds = 8 if depth else 6
    match chance.randrange(kinds):
        case 0:
            return None
        case 1:
            return chance.random() < 0.5
        case 2:
            return chance.choice((0, -1, 2**63, 1e308, -0.0, 0.5))
        case 3:
            return "".join(chr(chance.choice((0, 10, 34, 92, 127, 65, 0x2028, 0x1F4A9))) for _ in range(chance.randrange(20)))
        case 4:
            return chance.choice(
                ("image", "http://10.0.0.1/", "file:///etc/passwd", "data:image/png;base64,AAAA", "../../x", "%s%n")
            )
        case 5:
            return base64.b64encode(chance.randbytes(chance.randrange(60))).decode()
        case 6:
            return [_random_json(chance, depth - 1) for _ in range(chance.randrange(4))]
        case _:
            names = ("input_data", "columns", "data", "params", "", "x")
            return {chance.choice(names): _random_json(chance, depth - 1) for _ in range(chance.randrange(4))}


def _random_params(chance: random.Random) -> Any:
    names = (
        "score_threshold",
        "max_detections",
        "labels",
        "decimals",
        "holes",
        "mask_format",
        "on_error",
        "polygon_max_points",
        "x",
    )
    return {chance.choice(names): _random_json(chance, 1) for _ in range(chance.randrange(3))}


def _campaign(url: str, bodies: Sequence[bytes]) -> Verdicts:
    began = time.monotonic()

    def client(first: int) -> list[tuple[int, bytes]]:
        with requests.Session() as session:
            return [_post(session, url, body) for body in itertools.islice(bodies, first, None, CLIENTS)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [answer for answers in pool.map(client, range(CLIENTS)) for answer in answers]
    return _verdicts(answers, time.monotonic() - began)


def _post(session: requests.Session, url: str, body: bytes) -> tuple[int, bytes]:
    try:
        response = session.post(f"{url}/score", data=body, headers=JSON, timeout=PATIENCE_S)
    except requests.RequestException:
        return 0, b""
    return response.status_code, response.content


def _verdicts(answers: Sequence[tuple[int, bytes]], seconds: float) -> Verdicts:
    counts: Counter[str] = Counter()
    leaks: set[str] = set()
    for status, content in answers:
        leaks |= {match.group() for match in LEAK.finditer(content.decode(errors="replace"))}
        counts.update(_outcomes(status, content))
    server_errors = sum(status == 0 or status >= 500 for status, _ in answers) + counts["internal_error"]
    return Verdicts(counts.total(), server_errors, sorted(leaks), dict(counts), seconds)


def _outcomes(status: int, content: bytes) -> list[str]:
    """For a scored request, what became of each image; else the status."""
    if status != 200:
        return [str(status)]
    return [image["error"]["code"] if "error" in image else "scored" for image in orjson.loads(content)]


def _url_trick(path: str) -> Callable[[str, str], tuple[int, str, float]]:
    return lambda url, server: _timed_post(url, encoded_body([f"{server}/{path}"]))


def _timed_post(url: str, body: bytes, kind: str = JSON["content-type"]) -> tuple[int, str, float]:
    began = time.monotonic()
    response = requests.post(f"{url}/score", data=body, headers={"content-type": kind}, timeout=PATIENCE_S)
    return response.status_code, response.json()["code"], time.monotonic() - began


def _huge_png(url: str, _: str) -> tuple[int, str, float]:
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return _timed_post(url, encoded_body([file.getvalue()]))


def _many_values(url: str, _: str) -> tuple[int, str, float]:
    return _timed_post(url, b'{"x":[' + b"[]," * 10_000_000 + b"[]]}")


def _deep_json(url: str, _: str) -> tuple[int, str, float]:
    return _timed_post(url, b'{"input_data":' * 90_000)


def _form_in_punycode(url: str, _: str) -> tuple[int, str, float]:
    field = b'--b\r\nContent-Disposition: form-data; name="a-"\r\n\r\n' + b"a" * 1_000_000
    return _timed_post(url, field + b"\r\n--b--", "multipart/form-data; boundary=b; charset=punycode")


def _form_of_boundaries(url: str, _: str) -> tuple[int, str, float]:
    file = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n' + b"\r\n--bx" * 5_000_000
    return _timed_post(url, file + b"\r\n--b--", "multipart/form-data; boundary=b")


def _declared_10_gb(url: str, _: str) -> tuple[int, str, float]:
    return _raw(url, "Content-Length: 10000000000", itertools.repeat(b"{" + b" " * 65_535))


def _endless_chunks(url: str, _: str) -> tuple[int, str, float]:
    return _raw(url, "Transfer-Encoding: chunked", itertools.repeat(b"10000\r\n" + b" " * 65_536 + b"\r\n"))


def _dripping_body(url: str, _: str) -> tuple[int, str, float]:
    def drip() -> Any:
        while True:
            time.sleep(0.2)
            yield b"1\r\n \r\n"

    return _raw(url, "Transfer-Encoding: chunked", drip())


def _raw(url: str, header: str, parts: Any) -> tuple[int, str, float]:
    """Send a body over a socket of our own until an answer comes."""
    where, began = urlsplit(url), time.monotonic()
    with socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S) as connection:
        head = f"POST /score HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n{header}\r\n\r\n"
        connection.sendall(head.encode())
        answer, unsent = b"", b""
        while b"}" not in answer and time.monotonic() - began < PATIENCE_S:
            unsent = unsent or next(parts)
            readable, writable, _ = select.select([connection], [connection], [], 1)
            with suppress(ConnectionError):
                if readable:
                    answer += connection.recv(65_536)
                elif writable and not answer:  # sending on would reset the connection, and lose the rest of the answer
                    unsent = unsent[connection.send(unsent) :]
    head_text, _, content = answer.partition(b"\r\n\r\n")
    status = int(head_text.split()[1]) if head_text else 0
    return status, _code_of(content), time.monotonic() - began


def _code_of(content: bytes) -> str:
    found = re.search(rb'"code":"(\w+)"', content)
    return found[1].decode() if found else "-"


SPECIALS: dict[str, Callable[[str, str], tuple[int, str, float]]] = {
    "URL that drips": _url_trick("drip"),
    "URL that falls silent": _url_trick("silence"),
    "URL without end": _url_trick("endless"),
    "URL of 10 GB by its header": _url_trick("ten-gigabytes"),
    "URL in chunks of one byte": _url_trick("one-byte-chunks"),
    "URL of a gzip bomb": _url_trick("gzip-bomb"),
    "URL that redirects in a circle": _url_trick("loop"),
    "URL that redirects to metadata": _url_trick("to-metadata"),
    "PNG of 20,000 x 20,000": _huge_png,
    "JSON of 10 million lists, 30 MB": _many_values,
    "JSON 90,000 deep": _deep_json,
    "form in punycode, 1 MB": _form_in_punycode,
    "form of lines like its boundary, 30 MB": _form_of_boundaries,
    "body of 10 GB by its header": _declared_10_gb,
    "body without end, chunked": _endless_chunks,
    "body that drips": _dripping_body,
}
"""Attack by name: takes the service's URL and the hostile server's, gives status, code and seconds."""
