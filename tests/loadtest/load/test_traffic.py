"""What counts as an answer, which hosts may be loaded, and the times that a response carries."""

import pytest

from loadtest.load.traffic import OK, RemoteHostError, outcome_of, refuse_remote, stages_of


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"<html>", "wrong answer: not JSON"),
        (b"{}", "wrong answer: not a list"),
        (b"[]", "wrong answer: 0 results for 1 images"),
        (b'[{"boxes": null}]', "wrong answer: a result without boxes"),
        (b'[{"boxes": [], "error": {}}]', "wrong answer: an image was not scored"),
        (b'[{"boxes": [{"box": {}, "label": "person"}]}]', "wrong answer: an object without box, label, polygon, score"),
        (b'[{"boxes": []}]', OK),
    ],
)
def test_wrong_answers(answer, fault):
    """A 200 whose body is no answer is a failure that says what is wrong."""
    assert outcome_of(200, {}, answer, 1) == fault


def test_refusal_names():
    """A refusal says when to come back; a 503 that does not is another thing."""
    assert outcome_of(503, {"retry-after": "1"}, b"", 1) == "refused 503"
    assert outcome_of(503, {}, b"", 1) == "503 without Retry-After"
    assert outcome_of(422, {}, b"", 1) == "status 422"


@pytest.mark.parametrize("url", ["http://10.0.0.1:8000", "http://example.com", "http://127.0.0.1.example.com", "8000", ""])
def test_remote_is_refused(url):
    """Only this machine may be loaded without --allow-remote."""
    with pytest.raises(RemoteHostError):
        refuse_remote(url, allow_remote=False)
    refuse_remote(url, allow_remote=True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost", "http://[::1]:8000"])
def test_loopback_is_allowed(url):
    """Loopback by number or name raises nothing."""
    refuse_remote(url, allow_remote=False)


def test_stages():
    """Server-Timing as the service writes it; other entries do not hurt."""
    assert stages_of("decode;dur=1.5, detect;dur=20, cache;desc=x") == {"decode": 1.5, "detect": 20.0}
    assert stages_of(None) == {}
