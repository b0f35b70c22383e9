"""examples/ray_jobs on small data: by handle in a Ray job; fine-tuned and put into a service that goes on answering; on S3."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests
import yaml
from ray.job_submission import JobSubmissionClient

from loadtest.service.local_service import local_service
from tests.support.request_body import as_body
from tests.support.s3_server import s3_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EXAMPLES = Path(__file__).parents[2] / "examples/ray_jobs"


def ran(name, *arguments):
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dashboard_of(service):
    """Address of the REST API of the service's cluster."""
    program = "import ray; print('http://' + ray.init(log_to_driver=False).dashboard_url)"
    env = os.environ | {"RAY_ADDRESS": service.ray_address, "RAY_TMPDIR": str(service.folder)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()[-1]


class Client(threading.Thread):
    """Asks for a photo again and again until it is stopped; keeps what failed, and the labels that it saw."""

    def __init__(self, url, photo):
        super().__init__()
        self._url, self._body, self.stopped = url, as_body([photo], score_threshold=0.01), threading.Event()
        self.asked, self.failed, self.labels = 0, [], set()

    def run(self):
        while not self.stopped.is_set():
            answer = requests.post(f"{self._url}/score", json=self._body, timeout=60)
            self.asked += 1
            if answer.ok:
                self.labels |= {found["label"] for found in answer.json()[0]["boxes"]}
            else:
                self.failed.append((self.asked, answer.status_code, answer.text))


def test_by_handle_and_from_training_to_serving(photo, tmp_path, tiny_coco, monkeypatch):
    """The model changes from persons to balls and eggs while a client asks all the time: not one request fails."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/good.jpg").write_bytes(photo)
    (tmp_path / "photos/bad.jpg").write_bytes(b"no image")
    config = tmp_path / "serve_config.yaml"

    def keep(document):
        config.write_text(yaml.safe_dump(document))

    with local_service(change=keep) as service:
        document = yaml.safe_load(config.read_text())
        document["http_options"]["port"] = int(service.url.rpartition(":")[2])
        keep(document)
        dashboard = dashboard_of(service)
        jobs = JobSubmissionClient(dashboard)
        job = jobs.submit_job(entrypoint=f"{sys.executable} {EXAMPLES}/score_by_handle.py {tmp_path}/photos")
        asking = Client(service.url, photo)
        asking.start()
        try:
            options = ["--steps", "3", "--batch-size", "2", "--image-size", "160", "--workers", "0"]
            monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", dashboard)
            arguments = [tiny_coco / "coco.json", tiny_coco / "photos", tmp_path / "runs", config, *options]
            said = ran("finetune_to_serve", *arguments)
        finally:
            asking.stopped.set()
            asking.join()
        lines = jobs.get_job_logs(job).splitlines()
    assert "gone labels: person" in said
    assert yaml.safe_load(config.read_text())["applications"][0]["args"]["model"]["name"] == str(
        tmp_path / "runs/final.safetensors"
    )
    assert asking.asked > 10
    assert not asking.failed, asking.failed[:5]
    assert asking.labels > {"person"}, "the client saw both models"
    rows = {row["file_name"]: row for row in (json.loads(line) for line in lines if line.startswith("{"))}
    assert rows["good.jpg"]["found"][0][0] == "person"
    assert rows["bad.jpg"]["error"] == "unsupported_image_format"


def test_a_batch_on_s3(photo, monkeypatch):
    """A bucket of three photos: rows in it, and the count."""
    fs = pytest.importorskip("pyarrow.fs")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with s3_server():
        bucket, _ = fs.FileSystem.from_uri("s3://bucket")
        for number in range(3):
            with bucket.open_output_stream(f"bucket/photos/{number}.jpg") as stream:
                stream.write(photo)
        said = ran("batch_on_s3", "s3://bucket/photos", "s3://bucket/scored")
    assert json.loads(said.splitlines()[-1]) == {"photos": 3, "found": {"person": 3}}
