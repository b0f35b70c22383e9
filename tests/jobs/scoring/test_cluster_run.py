"""A batch on a cluster, the parts that need no cluster: what stopped a worker, progress."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("pyarrow")

from jobs import batch_ray
from jobs.scoring import cluster_run
from jobs.scoring.cluster_run import Progress, _why
from jobs.scoring.tables import InputsError
from pipeline.inference.engine import EngineInfo
from pipeline.model.checkpoints import load_checkpoint, save_safetensors
from pipeline.model.zoo import embedded_models


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Traceback\n  File x\njobs.scoring.cluster_stages.TooManyErrors: more photos failed\n\nx", "more photos failed"),
        (
            "Traceback\n  File x\nOSError: [Errno 28] No space left on device\n",
            "OSError: [Errno 28] No space left on device. The same",
        ),
    ],
)
def test_what_stopped_a_worker(text, said):
    assert _why(RuntimeError(text)).startswith(said)


def test_the_rate_is_of_the_time_since_the_first_photos(monkeypatch):
    """Workers take half a minute to start; counted in, the time left would be many times too long."""
    clock = [0.0]
    monkeypatch.setattr(cluster_run.time, "monotonic", lambda: clock[0])
    progress = Progress(None, 1000, 0)
    seen = []
    for clock[0], done in ((30.0, 0), (40.0, 8), (50.0, 508)):
        seen.append(progress._rate(done))
    assert seen == [0, 0.2, 50]


def args_of(*more):
    return batch_ray._parser().parse_args(["photos", "--output", "scored", *more])


def test_what_determines_the_rows(tmp_path):
    """Rows of another engine, precision or file of weights are not mixed with these."""
    weights = tmp_path / "mine.safetensors"
    shutil.copy(embedded_models()["rtmdet-ins_nano_person"], weights)
    _, before = cluster_run._staged(args_of("--model", str(weights)))
    assert before["model"] == str(weights)
    tensors = load_checkpoint(weights)
    save_safetensors(replace(tensors, spec=tensors.spec.with_classes(("cat",))), weights)
    for more, name in (((), "weights"), (("--engine", "simulated"), "engine"), (("--precision", "fp32"), "precision")):
        _, now = cluster_run._staged(args_of("--model", str(weights), *more))
        assert now[name] != before[name]
    _, official = cluster_run._staged(args_of("--model", "rtmdet-ins_x_8xb16-300e_coco"))
    assert official["weights"] == "33d4595b", "as OpenMMLab names the file; nothing is downloaded"


def test_the_model_of_an_application(monkeypatch):
    """As it says; one that does not is reported."""
    runs = [EngineInfo("mine", ("cat",), 640, "openvino", "bf16", "CPU", 1, 8, weights="0a1b2c3d"), TimeoutError()]

    def result(**_):
        answer = runs.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    handle = SimpleNamespace(model_info=SimpleNamespace(remote=lambda: SimpleNamespace(result=result)))
    running = SimpleNamespace(status="RUNNING")
    monkeypatch.setattr(cluster_run, "connect", lambda **_: None)
    monkeypatch.setattr(cluster_run.serve, "status", lambda: SimpleNamespace(applications={"app": running}))
    monkeypatch.setattr(cluster_run.serve, "get_app_handle", lambda _: handle)
    _, made_by = cluster_run._through(args_of("--through", "app"))
    assert made_by == {"model": "mine", "weights": "0a1b2c3d", "engine": "openvino", "precision": "bf16"}
    with pytest.raises(InputsError, match="--through app: it does not say which model it runs"):
        cluster_run._through(args_of("--through", "app"))


def test_more_tiles_than_a_decoder_makes():
    """Reported before workers start, with the most there may be."""
    with pytest.raises(
        InputsError, match=r"--tiles 9 scales photos to 4736 px, and 4096 is the most: .* --overlap 0\.2, --tiles 7 is"
    ):
        cluster_run._staged(args_of("--tiles", "9"))
    cluster_run._staged(args_of("--tiles", "7"))


def test_an_output_with_a_question_mark(capsys):
    """Ray Data would write and read other paths, and find no photos there."""
    with pytest.raises(SystemExit):
        batch_ray.main(["photos", "--output", "a?b"])
    assert "folder without one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "remedy"), [((), "lower --loaders"), (("--through", "app"), "add a node, or use jobs.batch_score")]
)
def test_a_cluster_without_room(options, remedy, monkeypatch):
    """With --through nearly all is asked by Ray Data, so no option of the job helps."""
    for name in ("available_resources", "cluster_resources"):
        monkeypatch.setattr(cluster_run.ray, name, lambda: {"CPU": 0.6})
    args = batch_ray._parser().parse_args(["photos", "--output", "scored", *options])
    with pytest.raises(InputsError, match=f"CPUs and the cluster has 0.6.*: {remedy}"):
        cluster_run._check_room(args)
