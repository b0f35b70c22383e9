"""Access lines stay off stderr; all other lines, and all files, are as before."""

import io
import logging

import pytest

from deployments.telemetry.access_log import keep_off_stderr


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
