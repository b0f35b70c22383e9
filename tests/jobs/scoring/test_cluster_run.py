"""A batch on a cluster, the parts that need no cluster: what stopped a worker, progress."""

import pytest

pytest.importorskip("pyarrow")

from jobs import batch_ray
from jobs.scoring import cluster_run
from jobs.scoring.cluster_run import Progress, _why


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


def test_an_output_with_a_question_mark(capsys):
    """Ray Data would write and read other paths, and find no photos there."""
    with pytest.raises(SystemExit):
        batch_ray.main(["photos", "--output", "a?b"])
    assert "folder without one" in capsys.readouterr().err
