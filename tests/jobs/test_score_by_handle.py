"""Pixels that are decoded here are those that the service decodes from the same file; and what the command says."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from ray.serve.exceptions import RayServeException

from jobs import score_by_handle
from jobs.score_by_handle import read_image
from pipeline.errors import Overloaded
from pipeline.types import ImageFault, ScoredImage, SegmentedObject


def test_pixels_are_upright(tmp_path):
    """A photo stored sideways is turned as its EXIF orientation says; red stays red."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (20, 10), (200, 20, 10)).save(tmp_path / "turned.png", exif=turned)
    pixels = read_image(str(tmp_path / "turned.png"), as_pixels=True)
    assert pixels.shape == (20, 10, 3)
    assert pixels[0, 0].tolist() == [200, 20, 10]


def test_pixels_of_16_bits_are_scaled(tmp_path):
    """40000 of 65535 is a light grey, not white."""
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    assert 150 < read_image(str(tmp_path / "deep.png"), as_pixels=True)[0, 0, 0] < 162


def test_no_deadline_is_that_of_the_service(monkeypatch):
    """Ray's clock takes no infinite time."""
    waited = []
    response = SimpleNamespace(result=lambda timeout_s: waited.append(timeout_s))
    method = SimpleNamespace(remote=lambda *_, timeout_s: waited.append(timeout_s) or response)
    monkeypatch.setattr(score_by_handle.serve, "get_app_handle", lambda _: SimpleNamespace(score=method))
    score_by_handle.score([b"photo"], timeout_s=math.inf)
    assert waited == [3600.0, 3605.0]


@pytest.fixture
def asked(monkeypatch):
    """What the service was asked, which finds a person in everything but what a URL names."""
    calls = []

    def score(images, params):
        calls.append((images, params))
        bad = ScoredImage([], fault=ImageFault(0, "url_refused", "No."))
        good = ScoredImage([SegmentedObject((0.0, 0.0, 1.0, 1.0), "person", 0.9, [[0.0, 0.0, 1.0, 1.0, 0.0, 1.0]])])
        return [bad if isinstance(image, str) else good for image in images]

    monkeypatch.setattr(score_by_handle.ray, "init", lambda **_: None)
    monkeypatch.setattr(score_by_handle, "score", score)
    return calls


def test_a_bad_image_does_not_lose_the_others(asked, tmp_path, capsys):
    """Each is reported once, with its code; so is a file that is not there. The status says that there was one."""
    (tmp_path / "a.jpg").write_bytes(b"photo")
    arguments = [str(tmp_path / "a.jpg"), str(tmp_path / "gone.jpg"), "https://bad/b.jpg"]
    assert score_by_handle.main(arguments) == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"{tmp_path / 'gone.jpg'}: No such file or directory", "https://bad/b.jpg: url_refused: No."]
    assert said.out.startswith(f"{tmp_path / 'a.jpg'}: person 0.900")
    ((images, params),) = asked
    assert (images, params.on_error) == ([b"photo", "https://bad/b.jpg"], "isolate")
    assert score_by_handle.main(arguments[:1]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}/gone.jpg"], "{}/gone.jpg: No such file or directory\n"),
        (["{}"], "{}: Is a directory\n"),
        (["--pixels", "{}/note.txt"], "{}/note.txt: unsupported_image_format: "),
        (["--score-threshold", "3", "x.jpg"], "jobs.score_by_handle: 'params.score_threshold': Input should be less than"),
    ],
)
def test_an_unusable_argument_is_one_line_on_stderr(asked, tmp_path, arguments, said, capsys):
    """And no request is sent."""
    (tmp_path / "note.txt").write_text("no photo")
    assert score_by_handle.main([argument.format(tmp_path) for argument in arguments]) == 1
    assert (err := capsys.readouterr().err).startswith(said.format(tmp_path))
    assert err.count("\n") == 1
    assert "https://errors.pydantic" not in err
    assert not asked


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RayServeException("Application 'rtmdet-ins' does not exist."), "Application 'rtmdet-ins' does not exist."),
        (Overloaded("Full."), "overloaded: Full."),
    ],
    ids=["not deployed", "busy"],
)
def test_a_service_that_does_not_answer_is_one_line(asked, error, said, monkeypatch, capsys):
    def score(*_):
        raise error

    monkeypatch.setattr(score_by_handle, "score", score)
    assert score_by_handle.main(["https://host/a.jpg"]) == 1
    assert capsys.readouterr().err == f"jobs.score_by_handle: {said}\n"
    assert not asked
