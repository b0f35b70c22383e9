"""Handle calls from a Ray job: its own process, connected to the service's cluster."""

import json
import os
import subprocess
import sys

import pytest
import requests

from tests.support.pages import PAGES, REPOSITORY, blocks

PROGRAM = """
import sys, ray, numpy as np, io
from PIL import Image
from jobs.score_by_handle import score
from deployments.params import ScoreParams
from pipeline.errors import ImageError, Overloaded, InvalidRequest, ServiceError
ray.init(address="auto", log_to_driver=False)
encoded = open(sys.argv[1], "rb").read()
pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
by_bytes, by_pixels, grey = score([encoded, pixels, pixels[..., 1]])
assert by_bytes.objects[0].label == "person" and by_bytes.objects[0].score > 0.5
assert len(by_bytes.objects) == len(by_pixels.objects)
assert np.allclose(by_bytes.objects[0].box, by_pixels.objects[0].box, atol=0.01)  # bf16 rounds as the batch falls
assert abs(by_bytes.objects[0].score - by_pixels.objects[0].score) < 0.02
assert grey.objects[0].label == "person"
assert set(by_bytes.timings_ms) == {"fetch", "decode", "queue", "detect", "polygonize"}
for bad, code in ((b"no image", 422), ("http://10.0.0.1/x.jpg", 422), (pixels[:0], 422)):
    try:
        score([encoded, bad])
    except ServiceError as error:
        assert error.status == code and [fault.index for fault in error.faults] == [1], (error.code, error.faults)
    else:
        raise SystemExit(f"{bad!r} was not refused")
try:
    score([encoded], ScoreParams(labels=["zebra"]))
except InvalidRequest as error:
    assert "person" in error.message
try:
    score([encoded], timeout_s=0.001)
except ServiceError as error:
    assert error.status in (408, 503), error.code
else:
    raise SystemExit("a deadline of a millisecond was kept")
isolated = score([encoded, b"no image"], ScoreParams(on_error="isolate"))
assert isolated[1].fault.index == 1 and not isolated[1].objects
print("all as expected")
"""


SAME_CODES = """
import json, sys, ray
from jobs.score_by_handle import score
from pipeline.errors import ServiceError
ray.init(address="auto", log_to_driver=False)
def outcome(images, params):
    try:
        score(images, params)
    except ServiceError as error:
        return [error.status, error.code, [[fault.index, fault.code, fault.message] for fault in error.faults]]
    return [200, None, []]
print(json.dumps([outcome(*request) for request in json.loads(sys.argv[1])]))
"""

BAD_REQUESTS = [
    (["bm8gaW1hZ2U="], {}),
    (["/9j/4AAQSkZJRg=="], {}),
    (["!!"], {}),
    ([""], {}),
    (["ftp://example.com/x"], {}),
    (["http://10.0.0.1/x.jpg"], {}),
    (["http://user:pass@example.com/"], {}),
    (["http://127.0.0.1:9/x.jpg"], {}),
    (["data:text/plain,x"], {}),
    (["aGk="] * 65, {}),
    (["aGk="], {"labels": ["zebra"]}),
    (["aGk="], {"score_threshold": 2}),
    (["aGk="], {"colour": "red"}),
    ([], {}),
]


def run(service, *command):
    environment = os.environ | {"RAY_ADDRESS": service.ray_address, "RAY_TMPDIR": str(service.folder)}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def photo_file(tmp_path, photo):
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo)
    return str(path)


def test_typed_results_and_errors(service, photo_file):
    """Bytes, RGB and grey pixels in, typed objects out; the same error codes as over HTTP."""
    done = run(service, "-c", PROGRAM, photo_file)
    assert done.returncode == 0, done.stderr
    assert "all as expected" in done.stdout


def test_the_example_job(service, photo_file):
    """The example of the README prints what it found."""
    done = run(service, "-m", "jobs.score_by_handle", photo_file, "--pixels")
    assert done.returncode == 0, done.stderr
    assert "person" in done.stdout


def test_the_documented_command_where_the_user_has_a_token(service, photo_file, tmp_path):
    """In a new shell: with `auto` Ray would use the token, and a cluster without tokens then sends no results."""
    (command,) = (
        block for block in blocks("bash", PAGES[REPOSITORY / "docs/API.md"]) if "jobs.score_by_handle photo.jpg" in block
    )
    command = command.replace(".venv/bin/python", sys.executable)
    command = command.replace("photo.jpg https://example.com/other.jpg", photo_file)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a" * 64)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_TMPDIR": str(service.folder)}
    done = subprocess.run(["bash", "-ec", command], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "person" in done.stdout


ASYNC = """
import asyncio, sys, ray
from ray import serve
from jobs.score_by_handle import score
from pipeline.errors import ServiceError
ray.init(address="auto", log_to_driver=False)
photo = open(sys.argv[1], "rb").read()
async def main():
    (found,) = await asyncio.to_thread(score, [photo])
    (same,) = await serve.get_app_handle("rtmdet-ins").score.remote([photo])
    assert found.objects[0].label == same.objects[0].label == "person"
    try:
        await serve.get_app_handle("rtmdet-ins").score.remote([b"no image"])
    except ray.exceptions.RayTaskError as error:
        assert isinstance(error.cause, ServiceError) and error.cause.code == "unsupported_image_format", error
asyncio.run(main())
print("all as documented")
"""


def test_from_asyncio(service, photo_file):
    """The two ways that docs/API.md names."""
    done = run(service, "-c", ASYNC, photo_file)
    assert done.returncode == 0, done.stderr
    assert "all as documented" in done.stdout


def test_same_codes_as_over_http(service):
    """Status, code and the images' own errors of every kind of bad request, word for word."""
    over_http = []
    for images, params in BAD_REQUESTS:
        body = {"input_data": {"columns": ["image"], "data": images}, "params": params}
        response = requests.post(f"{service.url}/score", json=body, timeout=60)
        answer = response.json() if response.status_code != 200 else {}
        faults = [[fault["index"], fault["code"], fault["message"]] for fault in answer.get("errors", [])]
        over_http.append([response.status_code, answer.get("code"), faults])
    done = run(service, "-c", SAME_CODES, json.dumps(BAD_REQUESTS))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == over_http
