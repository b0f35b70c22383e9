"""What a stage makes of errors, without Ray."""

import time
from types import SimpleNamespace

import pytest

from deployments.context import RequestContext
from deployments.stage import RetryAlone, Stage
from pipeline.errors import EngineLost, EngineOutOfMemory, ImageError, StageFailed


@pytest.mark.parametrize(
    ("raised", "kind", "level"),
    [
        (ImageError("no image"), ImageError, "INFO"),
        (EngineLost("CUDA error at 0xdead"), EngineLost, "ERROR"),
        (EngineOutOfMemory("a batch of 1 images (0xdead)"), EngineOutOfMemory, "ERROR"),
        (RuntimeError("0xdead"), StageFailed, "ERROR"),
    ],
    ids=["caller's fault", "card lost", "no memory", "bug"],
)
async def test_errors_of_an_image(raised, kind, level, caplog):
    """The caller's own faults are said to the caller; ours go to the log with their cause, and the caller gets none of it."""

    async def work(*_):
        raise raised

    with caplog.at_level("INFO", "ray.serve"):
        (error,) = await Stage("detector").each(work, ["image"], [None], [RequestContext("abc", time.time() + 10)])
    assert type(error) is kind
    assert "0xdead" not in error.message
    record = caplog.records[0]
    assert (record.levelname, "abc" in record.message) == (level, True)
    assert ("0xdead" in caplog.text) == (level == "ERROR")


async def test_an_image_that_is_sent_back_is_no_error():
    """Its sender gets the error, nobody counts it: it comes again."""

    async def work(*_):
        raise RetryAlone("large")

    stage, counted = Stage("image_loader"), []
    stage._metrics = SimpleNamespace(failed=counted.append, done=counted.append)
    (error,) = await stage.each(work, ["image"], [None], [RequestContext("abc", time.time() + 10)])
    assert type(error) is RetryAlone
    assert counted == []
