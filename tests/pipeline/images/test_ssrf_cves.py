"""Holes by which servers like this one were made to fetch from inside their own network, each tried here.

The pattern is the same every time: a URL passes a check, and the connection goes elsewhere. Here the address is judged where the
connection is made, so each of these must end without a connection.
"""

import httpcore
import pytest

from pipeline.errors import FetchError
from pipeline.images.fetch import Fetcher, FetchPolicy

METADATA = "169.254.169.254"
NAMES = {"photos.example": ["93.184.216.34"], "internal.example": ["10.0.0.5"], "metadata.example": [METADATA]}


class Recorder(httpcore.AsyncNetworkBackend):
    """Connects to a stream of canned answers, and remembers to which addresses."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.addresses: list[str] = []

    async def connect_tcp(self, host, *_, **__):
        self.addresses.append(host)
        return httpcore.AsyncMockStream([self.answers.pop(0)])

    async def sleep(self, seconds):
        pass


async def resolve(host, _port):
    return NAMES.get(host, [])


async def fetched(url, *answers):
    """The fault's code (None: fetched), and the addresses that were connected to."""
    recorder = Recorder(*answers)
    fetcher = Fetcher(FetchPolicy(retries=0), resolve, recorder)
    try:
        await fetcher.fetch(url)
        return None, recorder.addresses
    except FetchError as fault:
        return fault.code, recorder.addresses
    finally:
        await fetcher.aclose()


@pytest.mark.parametrize(
    "host", [METADATA, "localhost", "127.0.0.1", "internal.example", "metadata.example", "[::ffff:10.0.0.5]"]
)
async def test_cve_2025_54381_bentoml_fetches_any_url_of_a_client(host):
    """BentoML downloaded whatever URL stood in place of an uploaded file."""
    assert await fetched(f"http://{host}/latest/meta-data/iam") == ("url_refused", [])


BACKSLASHES = [
    rf"http://photos.example\@{METADATA}/x",
    rf"http://{METADATA}\@photos.example/x",
    rf"http://photos.example\\@{METADATA}/x",
    rf"http://photos.example\.{METADATA}/x",
    rf"http:\\{METADATA}\x",
    rf"http:/\{METADATA}/x",
    rf"http://photos.example%5C@{METADATA}/x",
    rf"http://photos.example%40{METADATA}/x",
]


@pytest.mark.parametrize("url", BACKSLASHES)
async def test_cve_2026_24779_vllm_two_parsers_read_a_backslash_differently(url):
    """The check saw one host, the client connected to another. Here the host that is checked is the one that is resolved and judged."""
    code, addresses = await fetched(url)
    assert code == "url_refused"
    assert addresses == []


@pytest.mark.parametrize("url", [url.replace("http:", scheme) for url in BACKSLASHES for scheme in ("HTTP:", " http:", "https:")])
async def test_cve_2026_25960_vllm_the_bypass_of_that_mend(url):
    """The first mend checked a normalised URL and fetched the one that had come."""
    code, addresses = await fetched(url)
    assert code == "url_refused"
    assert addresses == []


@pytest.mark.parametrize(
    "host", ["10.0.0.5", "192.168.1.1", "172.16.0.1", "0.0.0.0", "[::1]", "[fd00:ec2::254]", "0x7f000001", "2130706433", "127.1"]
)
async def test_cve_2026_33626_lmdeploy_loads_from_private_addresses(host):
    """`load_image` judged no address at all."""
    assert await fetched(f"https://{host}/x.jpg") == ("url_refused", [])


@pytest.mark.parametrize(
    "target", [f"http://{METADATA}/", "http://internal.example/", "//127.0.0.1/", "http://[::1]/", "file:///etc/passwd"]
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_cve_2026_63764_lmdeploy_follows_redirects_to_private_addresses(status, target):
    """The first URL was judged, where it redirected to was not. Only the public host is connected to here."""
    answer = f"HTTP/1.1 {status} See\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
    assert await fetched("http://photos.example/x.jpg", answer) == ("url_refused", ["93.184.216.34"])


async def test_what_is_judged_is_what_is_connected_to():
    """A name is resolved once, and its address connected to: a second answer of its name server changes nothing."""
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
    assert await fetched("http://photos.example/x.jpg", good) == (None, ["93.184.216.34"])
