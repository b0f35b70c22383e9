"""The examples' own logic."""

import base64
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rtmdet_ins_client import Found, Result, ScoringError
from rtmdet_ins_client.client import GRACE_S

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_label_studio_gets_a_region_for_each_ring():
    """Points in percent, with score and label; the photo's size."""
    label_studio = load("label_studio.py")
    found = Found("person", 0.9, (0, 0, 1, 1), [[0.1, 0.2, 0.5, 0.2, 0.5, 0.6], [0.7, 0.7, 0.8, 0.7, 0.8, 0.8]], [])
    first, second = label_studio.regions(Result([found], (200, 100)), "label", "image")
    assert first["value"]["points"] == [[10, 20], [50, 20], [50, 60]]
    assert second["value"]["polygonlabels"] == ["person"]
    assert (first["original_width"], first["original_height"], first["score"]) == (200, 100, 0.9)


def test_label_studio_has_one_client(monkeypatch):
    """Which a later call uses again, with its connections: Label Studio makes a new backend for each."""
    label_studio, made = load("label_studio.py"), []
    monkeypatch.setenv("SCORING_URL", "http://127.0.0.1:9")

    def client(*args, **options):
        made.append((args, options))
        return SimpleNamespace(score=lambda _path, **_: Result([], (200, 100)))

    monkeypatch.setattr(label_studio, "Client", client)
    for _ in range(2):
        assert predictions(label_studio, range(2)) == [{"result": [], "score": 0.0}] * 2
    ((_, options),) = made
    assert longest_s(options) < 100, "ML_TIMEOUT_PREDICT of Label Studio"


def predictions(label_studio, ids):
    """What Label Studio gets for tasks with these ids."""
    backend = label_studio.ScoringBackend()
    backend.get_first_tag_occurence = lambda *_: ("label", "image", "image")
    backend.get_local_path = lambda url, task_id: f"{task_id}{url}"
    return backend.predict([{"id": number, "data": {"image": "/a.jpg"}} for number in ids])


def test_a_bad_photo_leaves_the_other_tasks_their_predictions(monkeypatch, caplog):
    """A task on its own, and a fault that every photo would meet, are errors that the user sees."""
    label_studio = load("label_studio.py")
    faults = {
        "1/a.jpg": ScoringError("image_not_decodable", "damaged", 422),
        "3/a.jpg": ScoringError("unauthorized", "no key", 401),
    }

    def score(path, **_):
        if path in faults:
            raise faults[path]
        return Result([], (200, 100))

    monkeypatch.setattr(label_studio, "client", lambda: SimpleNamespace(score=score))
    none = {"result": [], "score": 0.0}
    assert predictions(label_studio, range(3)) == [none, [], none]
    assert "task 1: damaged" in caplog.text
    for ids in ([1], range(2, 4)):
        with pytest.raises(ScoringError):
            predictions(label_studio, ids)


def longest_s(options):
    """How long a photo may take with a client of these options."""
    return options["patience_s"] + options["deadline_s"] + GRACE_S


def test_the_cvat_function_ends_before_nuclio_ends_it(monkeypatch):
    """With an error that the user sees, also while the service is full or silent."""
    cvat, made = load("cvat/main.py"), []
    monkeypatch.setenv("SCORING_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(cvat, "Client", lambda *_, **options: made.append(options))
    cvat.init_context(SimpleNamespace(user_data=SimpleNamespace()))
    function = yaml.safe_load((EXAMPLES / "cvat/function.yaml").read_text())
    assert longest_s(made[0]) < float(function["spec"]["eventTimeout"].removesuffix("s"))


def test_cvat_gets_a_polygon_for_each_ring():
    """CVAT's function decodes the photo, passes the threshold on, also 0, and answers with points in pixels."""
    cvat, asked = load("cvat/main.py"), []
    found = Found("person", 0.9, (0, 0, 1, 1), [[0.1, 0.2, 0.5, 0.2, 0.5, 0.6], [0.7, 0.7, 0.8, 0.7, 0.8, 0.8]], [])

    def score(photo, **params):
        asked.append((photo, params["score_threshold"]))
        return Result([found], (200, 100))

    context = SimpleNamespace(user_data=SimpleNamespace(client=SimpleNamespace(score=score)), Response=SimpleNamespace)
    image = base64.b64encode(b"photo").decode()
    answers = [
        cvat.handler(context, SimpleNamespace(body=body)) for body in ({"image": image}, {"image": image, "threshold": 0.0})
    ]
    assert asked == [(b"photo", 0.5), (b"photo", 0.0)]
    first, second = json.loads(answers[0].body)
    assert first == {"confidence": "0.9", "label": "person", "points": [20, 20, 100, 20, 100, 60], "type": "polygon"}
    assert second["points"][:2] == [140, 70]


def test_the_cvat_function_file_names_what_the_code_reads():
    """The environment variables of function.yaml are those of main.py; its labels are a list of polygons."""
    function = yaml.safe_load((EXAMPLES / "cvat/function.yaml").read_text())
    code = (EXAMPLES / "cvat/main.py").read_text()
    assert all(f'"{variable["name"]}"' in code for variable in function["spec"]["env"])
    assert {label["type"] for label in json.loads(function["metadata"]["annotations"]["spec"])} == {"polygon"}
