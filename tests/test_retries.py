"""When a request is tried again: one table for the client package and the jobs' client, which must agree.

They share no code: the client package needs neither this distribution nor its dependencies, and is not one of them.
"""

import ssl
import threading
import time
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import pytest
import requests
from rtmdet_ins_client import Client, ScoringError
from rtmdet_ins_client import client as client_module

from jobs.scoring import service_client
from jobs.scoring.service_client import ServiceClient, ServiceFault
from tests.support.certificates import make_certificate
from tests.support.scripted_service import FULL, LOST, OK, answer, error, isolated, scripted_service

NO_APPLICATION = answer(404, "Path '/score' not found.")
"""HAProxy's own, for a moment after its start."""


@dataclass(frozen=True)
class Case:
    """A script, how many requests it takes, and what the error says; "" if the photo is scored."""

    script: list[Any]
    asked: int
    says: str = ""


def faults(step, says):
    """Four faults are tried again, the fifth is the last."""
    return Case([step] * 4 + [OK], 5), Case([step] * 9, 5, says)


CASES = {
    "nothing fails": Case([OK], 1),
    "refusals are not counted as faults": Case([FULL] * 7 + [LOST] * 4 + [OK], 12),
    "refusals between faults change nothing": Case([LOST, FULL] * 9, 9, "does not answer"),
    "429 is a refusal, too": Case([error(429, "overloaded")] * 7 + [OK], 8),
    **{
        f"{name}, {times}": case
        for name, step, says in (
            ("no response", LOST, "does not answer"),
            ("no application in the proxy", NO_APPLICATION, "404"),
            ("408", error(408, "deadline_exceeded"), "(deadline_exceeded)"),
            ("500", error(500, "internal_error"), "(internal_error)"),
            ("502", error(502, "internal_error"), "(internal_error)"),
            ("504", answer(504, "<html>"), "504"),
            ("an image's internal error", isolated("internal_error"), "(internal_error)"),
        )
        for times, case in zip(("four times", "nine times"), faults(step, says), strict=True)
    },
    "a URL's host that is silent once": Case([isolated("fetch_timeout"), OK], 2),
    "a URL's host that is silent twice": Case([isolated("fetch_unavailable")] * 9, 2, "(fetch_unavailable)"),
    "an image that is bad": Case([isolated("image_not_decodable")] * 9, 1, "(image_not_decodable)"),
    "a request that is bad": Case([error(400, "invalid_request")] * 9, 1, "(invalid_request)"),
    "a wrong key": Case([error(401, "unauthorized")] * 9, 1, "(unauthorized)"),
    "a route that the service lacks": Case([error(404, "not_found")] * 9, 1, "(not_found)"),
    **{
        f"another service, {document}": Case([answer(200, document)] * 9, 1, "did not answer")
        for document in ({"healthy": True}, [], [5], [{"healthy": True}], [{"boxes": 5}], [{"boxes": []}] * 2)
    },
    "no JSON": Case([answer(200, "<html>")] * 9, 1, "did not answer"),
    "a redirect": Case([answer(307, "", location="http://127.0.0.1:9/score")] * 9, 1, "redirects to http://127.0.0.1:9/score"),
}


class ByPackage:
    """rtmdet_ins_client."""

    def __init__(self, url, key=None):
        self.client = Client(url, key, patience_s=service_client.PATIENCE_S)
        self.stop = self.client.close

    def score(self):
        """What the error says; "" if the photo is scored."""
        try:
            self.client.score(b"photo", on_error="isolate")
        except ScoringError as fault:
            return str(fault)
        return ""


class ByJobs:
    """jobs.scoring.service_client."""

    def __init__(self, url, key=None):
        self.client = ServiceClient(url, key)
        self.stop = self.client.stop

    def score(self):
        """As ByPackage's."""
        try:
            (scored,) = self.client.score(["cGhvdG8="], {"on_error": "isolate"})
        except ServiceFault as fault:
            return str(fault)
        return f"({scored['error']['code']})" if "error" in scored else ""


pytestmark = pytest.mark.parametrize("client_of", [ByPackage, ByJobs], ids=["package", "jobs"])


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    for module in (client_module, service_client):
        monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.005)
        monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.005)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_tries(client_of, case):
    with scripted_service(*case.script) as service:
        said = client_of(service.url).score()
    assert (len(service.asked), case.says in said if case.says else said) == (case.asked, True if case.says else "")


@pytest.mark.parametrize("step", [FULL, LOST], ids=["refusals", "faults"])
def test_patience_ends_all_retries(client_of, monkeypatch, step):
    """A caller with a deadline of its own can rely on it."""
    monkeypatch.setattr(service_client, "PATIENCE_S", 0.0)
    with scripted_service(step) as service:
        assert client_of(service.url).score()
    assert len(service.asked) == 1


def in_seconds(count):
    return count


def as_a_date(count):
    """As a gateway may send it. Dates have whole seconds: it is up to one second earlier."""
    return formatdate(time.time() + count, usegmt=True)


@pytest.mark.parametrize(("after", "least_s"), [(in_seconds, 2.0), (as_a_date, 0.9)])
def test_retry_after_is_kept_to(client_of, monkeypatch, after, least_s):
    """Not tried again before; not waited for if it is after the patience."""
    with scripted_service(error(503, "overloaded", retry_after=after(2)), OK) as service:
        began = time.monotonic()
        assert client_of(service.url).score() == ""
        assert time.monotonic() - began >= least_s
    monkeypatch.setattr(service_client, "PATIENCE_S", 5.0)
    with scripted_service(error(503, "overloaded", retry_after=after(9))) as service:
        assert "(overloaded)" in client_of(service.url).score()
    assert len(service.asked) == 1


@pytest.mark.parametrize("after", ["soon", "-3", "", "Mon, 01 Jan 2001 00:00:00 GMT"])
def test_retry_after_that_says_no_time_to_wait_is_ignored(client_of, after):
    with scripted_service(error(503, "overloaded", retry_after=after), OK) as service:
        assert client_of(service.url).score() == ""
    assert len(service.asked) == 2


@pytest.mark.parametrize("step", [FULL, isolated("internal_error")], ids=["refused", "failed"])
def test_a_stop_ends_a_pause(client_of, monkeypatch, step):
    """At once, whatever Retry-After said."""
    for module in (client_module, service_client):
        monkeypatch.setattr(module, "FIRST_PAUSE_S", 60)
        monkeypatch.setattr(module, "LONGEST_PAUSE_S", 60)
    with scripted_service(step) as service:
        client, said = client_of(service.url), []
        thread = threading.Thread(target=lambda: said.append(client.score()), daemon=True)
        thread.start()
        while not service.asked:
            time.sleep(0.01)
        time.sleep(0.05)
        client.stop()
        thread.join(5)
    assert len(said) == len(service.asked) == 1
    assert said[0]


@pytest.mark.parametrize(
    "wrong",
    [
        requests.exceptions.InvalidHeader("a header"),
        requests.exceptions.InvalidURL("a URL"),
        requests.exceptions.InvalidProxyURL(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_requests_that_cannot_be_sent_are_not_retried(client_of, monkeypatch, wrong):
    """They are the caller's error."""
    client, asked = client_of("http://127.0.0.1:9"), []

    def request(*_args, **_options):
        asked.append(1)
        raise wrong

    monkeypatch.setattr(client.client._session, "request", request)
    monkeypatch.setattr(client.client._session, "post", request)
    assert "cannot be sent" in client.score()
    assert len(asked) == 1


def counted(client):
    """What the client says after scoring, and how many requests it tried to send."""
    session, asked = client.client._session, []
    send = session.request
    session.request = lambda *args, **options: asked.append(1) or send(*args, **options)
    return client.score(), len(asked)


def test_certificates_that_stay_wrong(client_of, tmp_path, monkeypatch):
    """One that is not trusted, a file of authorities that is missing or holds none, and a port without TLS: told at once."""
    tls, _ = server_tls(tmp_path)
    (tmp_path / "none.pem").write_text("no certificate")
    with scripted_service(OK, tls=tls) as service:
        for authorities, reason in (
            ("", "CERTIFICATE_VERIFY_FAILED"),
            ("none.pem", "NO_CERTIFICATE"),
            ("gone.pem", "invalid path"),
        ):
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / authorities) if authorities else "")
            said, asked = counted(client_of(service.url))
            assert (reason in said, "cannot be sent" in said, asked) == (True, True, 1), said
    with scripted_service(OK) as service:
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        said, asked = counted(client_of(service.url.replace("http://", "https://")))
        assert ("WRONG_VERSION_NUMBER" in said, "use http://" in said, asked) == (True, True, 1)


def test_a_handshake_that_is_cut_is_tried_again(client_of, monkeypatch):
    """As by a load balancer that is started again."""
    client = client_of("https://127.0.0.1:9")
    cut = requests.exceptions.SSLError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol")
    monkeypatch.setattr(client.client._session, "request", lambda *_, **__: raised(cut))
    said, asked = counted(client)
    assert ("does not answer" in said, asked) == (True, 5)


def raised(error):
    raise error


def server_tls(folder):
    """A server's context with a certificate of its own, and the certificate's file."""
    certificate, key = make_certificate(folder, "localhost")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    return tls, certificate


def test_no_key_goes_to_another_host(client_of, tmp_path, monkeypatch):
    """A redirect is not followed, and ~/.netrc does not replace the key. A key may have letters of any alphabet."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with scripted_service(OK) as other, scripted_service(answer(307, "", location=f"{other.url}/score")) as service:
        assert "redirects to" in client_of(service.url, "ключ").score()
    assert service.asked[0][2]["Authorization"].encode("latin-1") == "Bearer ключ".encode()
    assert not other.asked


def test_the_environment_is_used(client_of, tmp_path, monkeypatch):
    """REQUESTS_CA_BUNDLE for an authority of one's own, HTTP_PROXY for a proxy."""
    tls, certificate = server_tls(tmp_path)
    with scripted_service(OK, tls=tls) as service:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
        assert client_of(service.url).score() == ""
    for name in ("no_proxy", "NO_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with scripted_service(OK) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert client_of("http://service.test").score() == ""
    assert proxy.asked[0][1].startswith("http://service.test/score")
