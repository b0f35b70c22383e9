"""Attacks on the real service, the quick version of `python -m tests.security.hostile`: it answers, leaks nothing and loses no replica."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from deployments.settings import DEPLOYMENTS
from loadtest.service.local_cluster import NotReady
from loadtest.service.local_service import local_service, ray_environment
from loadtest.service.processes import title_of
from tests.e2e.batches import settled_batches
from tests.security.attacks import SPECIALS, attack_with_bodies, attack_with_files, encoded_body
from tests.security.mutants import mutants
from tests.support.processes import is_alive

JSON = {"content-type": "application/json"}
ODD_IMAGES = Path(__file__).parents[3] / "shared" / "images"


@pytest.fixture
def nothing_lost(service):
    """The replicas from before still run after the test."""
    before = [pid for name in DEPLOYMENTS for pid in service.replica_pids(name)]
    yield
    assert all(map(psutil.pid_exists, before))


def post(service, body, **headers):
    return requests.post(f"{service.url}/score", data=body, headers=JSON | headers, timeout=60)


def decoders(service):
    return [process for process in service.processes() if "pipeline.images.decoder_worker" in title_of(process)]


def all_decoders(service, photo):
    """Every decoder, running. One that died while idle starts again only when its turn comes, so images are sent until all had theirs."""
    until = time.monotonic() + 60
    while len(running := decoders(service)) < 2 * len(service.replica_pids("ImageLoader")):  # two each, image_loader.threads
        assert time.monotonic() < until, "not every decoder came back"
        assert post(service, encoded_body([photo] * 8)).status_code == 200
    return running


@pytest.mark.usefixtures("nothing_lost")
def test_mutated_files(service):
    """Damaged files of every format: scored or refused, each for itself."""
    verdicts = attack_with_files(service.url, list(mutants(170, seed=2)))
    assert (verdicts.server_errors, verdicts.leaks) == (0, [])
    assert {"scored", "image_not_decodable"} <= set(verdicts.counts)


@pytest.mark.skipif(not ODD_IMAGES.is_dir(), reason=f"{ODD_IMAGES} is not there")
@pytest.mark.usefixtures("nothing_lost")
def test_odd_images(service):
    """Real files in odd modes, with odd EXIF."""
    verdicts = attack_with_files(service.url, [path.read_bytes() for path in sorted(ODD_IMAGES.rglob("*.*"))])
    assert (verdicts.server_errors, verdicts.leaks) == (0, [])


@pytest.mark.usefixtures("nothing_lost")
def test_random_bodies(service):
    """Bytes, JSON and damaged requests: a 4xx that tells nothing."""
    verdicts = attack_with_bodies(service.url, 200, seed=2)
    assert (verdicts.server_errors, verdicts.leaks) == (0, [])
    assert verdicts.answers >= 200


@pytest.mark.usefixtures("nothing_lost")
@pytest.mark.parametrize("name", [name for name in SPECIALS if name != "URL that drips"])  # it takes 10 s, see loadtest
def test_large_attacks(service, hostile_url, name):
    """Each is refused with a 4xx, before it has cost much time or memory; a body that drips by HAProxy, after 30 s."""
    status, code, seconds = SPECIALS[name](service.url, hostile_url)
    assert 400 <= status < 500
    assert code != "-"
    assert seconds < 35


@pytest.mark.usefixtures("nothing_lost")
@pytest.mark.parametrize(("deed", "message"), [(signal.SIGSEGV, "crashed its decoder"), (None, "decode_timeout_s")])
def test_a_lost_decoder_costs_one_image(service, photo, deed, message):
    """A decoder that crashes or hangs gives a 422 for its image; no replica is lost, and the next image is scored."""
    all_decoders(service, photo)
    answers = []
    for _ in range(4):  # a spare that had died starts again and takes the image; next time it is stopped, too
        stopped = decoders(service)
        for process in stopped:
            process.suspend()
        client = threading.Thread(target=lambda: answers.append(post(service, encoded_body([photo]))))
        client.start()
        time.sleep(1)
        if deed:
            for process in stopped:
                process.send_signal(deed)
                process.resume()
        client.join()
        if answers[-1].status_code != 200:
            break
    for process in stopped:
        if process.is_running():
            process.kill()
    while any(map(is_alive, stopped)):
        time.sleep(0.01)  # one that is dying still takes an image
    assert answers[-1].status_code == 422
    assert answers[-1].json()["code"] == "image_not_decodable"
    assert message in answers[-1].json()["message"]
    assert post(service, encoded_body([photo] * 4)).status_code == 200


def test_work_past_its_deadline_never_reaches_the_model(service, photo, hostile_url):
    """The answer is a 408, and the network ran no image of the request that waited for its URL."""
    before = settled_batches(service)
    response = post(service, encoded_body([f"{hostile_url}/silence"] * 8), **{"x-request-timeout-seconds": "0.5"})
    assert (response.status_code, response.json()["code"]) == (408, "deadline_exceeded")
    assert settled_batches(service) == before
    response = post(service, encoded_body([photo] * 64), **{"x-request-timeout-seconds": "0.3"})
    assert response.status_code == 408
    assert (settled_batches(service) - before).images < 64


def test_work_of_a_client_that_left_is_dropped(service, photo):
    """A client closes its connection with 64 images in flight: the network does not run most of them, and other clients get their
    answers."""
    before = settled_batches(service)
    where, body = urlsplit(service.url), encoded_body([photo] * 64)
    with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
        head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        with ThreadPoolExecutor(8) as others:
            answers = [others.submit(post, service, encoded_body([photo])) for _ in range(8)]
            time.sleep(0.1)
            connection.shutdown(socket.SHUT_RDWR)
    statuses = {answer.result().status_code for answer in answers}
    assert 200 in statuses
    assert statuses <= {200, 503}  # where others use the machine, 64 images may be more than the deadline leaves time for
    assert (settled_batches(service) - before).images < 40
    assert post(service, encoded_body([photo])).status_code == 200


def test_haproxy_has_the_options_of_ray_env(service):
    """Ray writes every line of these two settings into HAProxy's configuration, after what it replaces."""
    (file,) = service.folder.glob("haproxy/**/cfg")
    defaults = file.read_text().partition("\ndefaults\n")[2].partition("\nfrontend ")[0]
    lines = [line.strip() for line in defaults.splitlines()]
    retry_on, *options = [line.strip() for line in ray_environment()["RAY_SERVE_HAPROXY_RETRY_ON"].splitlines()]
    balance, *errors = [line.strip() for line in ray_environment()["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"].splitlines()]
    assert (len(options), len(errors)) == (8, 5)
    assert {f"retry-on {retry_on}", *options, f"balance {balance}", *errors} <= set(lines)
    assert lines.index("option splice-request") < lines.index("no option splice-request")
    assert max(number for number, line in enumerate(lines) if line.startswith("errorfile ")) < lines.index(errors[1])


def test_logs_know_requests_but_no_secrets(service, photo):
    """After a request's work its id stands in the stages' logs; keys, query strings, bodies and images never do."""
    secrets = ("QUERYSECRET", "URLSECRET", "PASSWORDSECRET", "KEYSECRET", "BODYSECRET", "IMAGESECRET", "/9j/4AAQ")
    urls = ["http://169.254.169.254/x?token=URLSECRET", "http://user:PASSWORDSECRET@example.com/", "http://[::1/?x=URLSECRET"]
    headers = {"authorization": "Bearer KEYSECRET", "x-request-id": "the-request-to-find"}
    for body in (encoded_body([photo, b"IMAGESECRET" * 9, *urls], on_error="isolate"), encoded_body(urls[:1]), b"BODYSECRET"):
        requests.post(f"{service.url}/score?key=QUERYSECRET", data=body, headers=JSON | headers, timeout=60)
    time.sleep(1)
    logs = {
        path: path.read_text(errors="replace") for path in service.folder.rglob("*") if path.is_file() and "logs" in path.parts
    }
    logs[Path("serve.log")] = service.log_tail(10_000)
    assert not [(path.name, secret) for path, text in logs.items() for secret in secrets if secret in text]
    stages = {path.name.split("_")[2] for path, text in logs.items() if "the-request-to-find" in text and "replica" in path.name}
    assert stages == set(DEPLOYMENTS)


def test_a_refusal_is_one_line_of_log(service):
    """A bad image does not fill the log with tracebacks."""
    post(service, encoded_body([b"no image"]), **{"x-request-id": "refused-image"})
    time.sleep(0.5)
    text = "".join(path.read_text() for path in (service.folder / "ray").rglob("replica_*ImageLoader*.log"))
    (line,) = [line for line in text.splitlines() if "refused-image" in line and "Refused" in line]
    assert "unsupported_image_format" in line
    assert len(line) < 1000
    assert "UnidentifiedImageError" not in text


@pytest.mark.slow
def test_without_keys_it_does_not_start_beyond_loopback():
    """`serve run` beyond loopback without keys ends by itself, and says what to set."""
    with (
        pytest.raises(NotReady, match=r"0\.0\.0\.0, beyond loopback.*allow_anonymous"),
        local_service(change=lambda document: document["http_options"].update(host="0.0.0.0")),
    ):
        pytest.fail("it started")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("schemathesis") is None, reason="schemathesis is not installed: pip install schemathesis")
def test_schema_fuzzing(service):
    """schemathesis, from the server's own OpenAPI document: no server error, every answer as documented."""
    command = ["schemathesis", "run", f"{service.url}/openapi.json", "--max-examples", "200"]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    environment = {name: value for name, value in os.environ.items() if not re.search("proxy", name, re.IGNORECASE)}
    done = subprocess.run([*command, "--checks", checks], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
