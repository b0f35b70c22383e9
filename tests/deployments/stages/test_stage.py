"""What a stage makes of errors, without Ray."""

import time
from types import SimpleNamespace

import pytest

from deployments.stages.retry_alone import RetryAlone
from deployments.stages.stage import StageRunner
from deployments.task import ImageTask, RequestContext, ScoreOptions
from pipeline.errors import EngineLost, EngineOutOfMemory, ImageError, StageFailed
from pipeline.types import DetectOptions, OutlineOptions


def new_task(payload="image"):
    options = ScoreOptions(DetectOptions(), OutlineOptions())
    return ImageTask(payload, options, RequestContext("abc", time.time() + 10), {"fetch": 1.0})


async def test_timings_are_carried_and_added_to():
    """`fetch` came with the task, the stage adds to it; a task that came with an error is handed on as it is."""

    async def work(image, _, timings):
        timings.add("fetch", 0.5)
        with timings.measure("decode"):
            return image.upper()

    came_bad = ImageError("bad")
    done, failed = await StageRunner("detector").each(work, [new_task(), new_task(came_bad)])
    assert (done.payload, failed.payload) == ("IMAGE", came_bad)
    assert done.timings_ms["fetch"] == 501.0
    assert 0 <= done.timings_ms["decode"] < 10_000
    assert failed.timings_ms == {"fetch": 1.0}


@pytest.mark.parametrize(
    ("raised", "kind", "level"),
    [
        (ImageError("no image"), ImageError, "INFO"),
        (EngineLost("CUDA error at 0xdead"), EngineLost, "ERROR"),
        (EngineOutOfMemory("a batch of 1 images (0xdead)"), EngineOutOfMemory, "ERROR"),
        (RuntimeError("0xdead"), StageFailed, "ERROR"),
    ],
    ids=["caller's fault", "GPU lost", "no memory", "bug"],
)
async def test_errors_of_an_image(raised, kind, level, caplog):
    """Errors of the caller are returned to it; unexpected ones are logged with their cause, and the caller gets no details."""

    async def work(*_):
        raise raised

    with caplog.at_level("INFO", "ray.serve"):
        (error,) = [task.payload for task in await StageRunner("detector").each(work, [new_task()])]
    assert type(error) is kind
    assert "0xdead" not in error.message
    record = caplog.records[0]
    assert (record.levelname, "abc" in record.message) == (level, True)
    assert ("0xdead" in caplog.text) == (level == "ERROR")


async def test_an_image_to_retry_alone_is_not_counted_as_an_error():
    """Its sender gets the error; it is not counted, because the image is retried."""

    async def work(*_):
        raise RetryAlone("large")

    stage, counted = StageRunner("image_loader"), []
    stage._metrics = SimpleNamespace(failed=counted.append, done=counted.append)
    (error,) = [task.payload for task in await stage.each(work, [new_task()])]
    assert type(error) is RetryAlone
    assert counted == []
