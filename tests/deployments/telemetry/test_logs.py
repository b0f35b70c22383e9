"""Access lines stay off stderr; warnings of `pipeline` are in the replica's file; all other lines are as before."""

import io
import logging

import pytest

from deployments.stages.stage import StageRunner
from deployments.telemetry.logs import keep_off_stderr


@pytest.fixture
def ray_logger(tmp_path):
    """Ray Serve's logger with a file and stderr, as in a replica; yields both texts' readers."""
    logger, stderr = logging.getLogger("ray.serve"), io.StringIO()
    handlers = [logging.StreamHandler(stderr), logging.FileHandler(tmp_path / "replica.log")]
    before, level = logger.handlers, logger.level
    logger.handlers = handlers
    logger.setLevel(logging.INFO)
    yield lambda: (stderr.getvalue(), (tmp_path / "replica.log").read_text())
    logger.handlers = before
    logger.setLevel(level)
    handlers[1].close()


def test_only_the_access_line_is_missing(ray_logger):
    keep_off_stderr()
    logger = logging.getLogger("ray.serve")
    logger.info("POST /score 200", extra={"serve_access_log": True})
    logger.info("the model is loaded")
    logger.warning("a replica was lost", extra={"serve_access_log": False})
    stderr, file = ray_logger()
    assert stderr == "the model is loaded\na replica was lost\n"
    assert file == "POST /score 200\n" + stderr


def test_pipeline_warns_in_the_file_of_the_replica(ray_logger, monkeypatch):
    """Once, though several stages may be in one process; also after Ray Serve has set up its logger again. Not its other lines."""
    pipeline, serve = logging.getLogger("pipeline"), logging.getLogger("ray.serve")
    monkeypatch.setattr(pipeline, "handlers", [])
    StageRunner("image_loader")
    StageRunner("detector")
    handlers = list(serve.handlers)
    serve.handlers.clear()
    for handler in handlers:
        serve.addHandler(handler)
    logging.getLogger("pipeline.inference.batcher").warning("a batch of 8 failed")
    logging.getLogger("pipeline.inference.batcher").info("nothing to see")
    stderr, file = ray_logger()
    assert stderr == file == "a batch of 8 failed\n"
