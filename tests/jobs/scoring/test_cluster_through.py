"""A batch through an application's handle, with a stand-in for the call: what is asked again, what ends the job."""

import json

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from jobs.scoring import cluster_stages, cluster_through
from jobs.scoring.cluster_through import CallRefused, Through
from pipeline.errors import LimitExceeded, Overloaded
from pipeline.types import ImageFault, ScoredImage, SegmentedObject

FOUND = ScoredImage([SegmentedObject((0, 0, 1, 1), "cat", 0.9, [[0, 0, 1, 0, 1, 1]])])
BAD, LATE = (ScoredImage([], fault=ImageFault(0, code, "why")) for code in ("image_not_decodable", "deadline_exceeded"))


@pytest.fixture
def through(monkeypatch):
    """Scores a batch; each call has the next of these outcomes. Gives the preds, the images of each call, and what was counted."""

    def run(images, *outcomes):
        calls, counted, column, left = [], [], np.empty(len(images), object), list(outcomes)
        column[:] = images

        def score(sent, params, **_):
            assert params.on_error == "isolate"
            calls.append(sent)
            outcome = left.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(cluster_through, "score", score)
        monkeypatch.setattr(cluster_through, "pauses", lambda: iter([0.0] * 9))
        monkeypatch.setattr(
            cluster_stages, "count", lambda _, done, errors, faults: counted.append((done, len(errors), len(faults)))
        )
        rows = Through("app", {}, None)({"id": np.arange(len(images)), "image": column})
        return [json.loads(preds) for preds in rows["preds"]], calls, counted

    return run


def test_transient_failures_are_retried(through):
    """The whole call, then the one image; a bad photo at once."""
    preds, calls, counted = through([b"1", b"2", b"3"], Overloaded("full"), [FOUND, LATE, BAD], [FOUND])
    assert calls == [[b"1", b"2", b"3"], [b"1", b"2", b"3"], [b"2"]]
    assert [len(found["boxes"]) for found in preds] == [1, 1, 0]
    assert preds[2]["error"] == {"code": "image_not_decodable", "message": "why"}
    assert counted == [(3, 1, 0)]


def test_retries_end_after_the_patience(through, monkeypatch):
    """Then the photo gets no row, so the same command tries it again; a bad one has its row."""
    monkeypatch.setattr(cluster_through, "PATIENCE_S", -1.0)
    preds, _, counted = through([b"1"], Overloaded("full"))
    assert preds == []
    assert counted == [(0, 0, 1)]
    preds, _, counted = through([b"1", b"2"], [LATE, BAD])
    assert preds == [{"boxes": [], "error": {"code": "image_not_decodable", "message": "why"}}]
    assert counted == [(1, 1, 1)]


def test_a_call_that_is_refused_ends_the_job(through):
    with pytest.raises(CallRefused, match=r"app refuses a call of 1 images \(--mini-batch-size\): too many"):
        through([b"1"], LimitExceeded("too many", code="too_many_images"))


def test_only_what_can_be_read_is_sent(through, tmp_path):
    """URLs as they are; a file's bytes; what is missing is an error without a call."""
    (tmp_path / "a.jpg").write_bytes(b"jpeg")
    images = ["https://example.com/x.jpg", str(tmp_path / "a.jpg"), str(tmp_path / "gone.jpg")]
    preds, calls, _ = through(images, [FOUND, FOUND])
    assert calls == [["https://example.com/x.jpg", b"jpeg"]]
    assert preds[2]["error"]["code"] == "image_not_readable"
    large = tmp_path / "large.bmp"
    large.write_bytes(bytes(25_000_000))
    _, calls, _ = through([str(large)], [FOUND])
    assert calls == [[bytes(25_000_000)]], "whole: the service has limits of its own"
    (only,), calls, _ = through([str(tmp_path / "gone.jpg")])
    assert "error" in only
    assert not calls
