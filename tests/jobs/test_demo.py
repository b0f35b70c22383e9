"""Errors of the demo (tests/e2e tests that it works)."""

import pytest

from jobs import demo
from loadtest.service.machine import free_port
from tests.support.stub_service import Handler, stub_service


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The exit status of the demo, which waits for half a second at most."""
    monkeypatch.setattr(demo, "START_TIMEOUT_S", 0.5)
    return lambda url, *more: demo.main(["--url", url, "--out", str(tmp_path / "out"), *more])


@pytest.fixture
def stub(monkeypatch):
    """A service that wants the key `right` for /score alone."""
    monkeypatch.setattr(demo, "_status_of", lambda _: None)
    with stub_service(key="right") as server:
        yield server


def test_an_error_is_reported_in_the_servers_words(run, stub, capsys):
    """With message and code of the server; for a 401 also the options for a key."""
    assert run(stub.url) == 1
    said = "The bearer key is not valid. (unauthorized) The key is given by --key-env or --key."
    assert capsys.readouterr().err == f"jobs.demo: {stub.url}/score answered 401: {said}\n"


def test_an_error_of_another_server_is_reported_unchanged(run, stub, capsys):
    stub.key = None
    stub.statuses.append(422)
    assert run(stub.url) == 1
    assert capsys.readouterr().err == f'jobs.demo: {stub.url}/score answered 422: {{"message": "not now"}}\n'


def test_netrc_does_not_replace_the_key(run, stub, tmp_path, monkeypatch):
    """As requests would."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    stub.answer = {"boxes": []}
    assert run(stub.url, "--key", "right") == 0


def test_the_key_may_come_from_the_environment(run, stub, monkeypatch):
    """So that the list of processes does not show it."""
    monkeypatch.setenv("SCORING_KEY", "right")
    stub.answer = {"boxes": []}
    assert run(stub.url, "--key-env", "SCORING_KEY") == 0
    assert stub.asked[0][0]["Authorization"] == "Bearer right"


def test_it_says_that_it_waits(run, capsys):
    """At once, for what, and for how long."""
    url = f"http://127.0.0.1:{free_port()}"
    assert run(url) == 1
    waits, ends = capsys.readouterr().err.splitlines()
    assert waits == f"waiting for {url}/ready, 0.5 s at most"
    assert ends.startswith(f"jobs.demo: no server is ready at {url}: no connection; start one with `make serve`")


def test_a_url_of_another_server_is_reported(run, monkeypatch, capsys):
    """A 404 that persists is not a server that is still starting."""
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler._send(404, {"message": "Not found", "code": "not_found"}))
    with stub_service() as server:
        assert run(f"{server.url}/v1") == 1
    assert f"{server.url}/v1/ready answered 404; nothing is deployed there yet, or --url names more" in capsys.readouterr().err


def test_a_server_that_gets_ready_is_waited_for(run, monkeypatch, capsys):
    statuses = iter(["it starts", None])
    monkeypatch.setattr(demo, "_status_of", lambda _: next(statuses))
    with stub_service(answer={"boxes": []}) as server:
        assert run(server.url) == 0
    assert capsys.readouterr().err == f"waiting for {server.url}/ready, 0.5 s at most\n"


@pytest.mark.parametrize(("name", "said"), [(".", "is a folder; name one of its photos"), ("gone.jpg", "there is no file")])
def test_a_missing_photo_is_reported_before_waiting(run, tmp_path, name, said, capsys):
    assert run("http://127.0.0.1:9", "--image", str(tmp_path / name)) == 1
    assert (told := capsys.readouterr().err).startswith("jobs.demo: --image: ")
    assert said in told
    assert told.count("\n") == 1
