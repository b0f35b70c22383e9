"""mmengine's Runner with a console that people can read; its log file in the work folder has everything."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import logging
import re
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

FOR_THE_FILE = re.compile(
    r"\s*-+\s*System environment|Config:|Hooks will be executed|Distributed training is not used|paramwise_options|Exp name|"
    r'init_weights of \w+ has been called|"FileClient" will be deprecated|"HardDiskBackend" is the alias'
)
"""Hundreds of lines before the first step, and warnings that a user of the jobs can do nothing about."""


class ConciseRunner(Runner):
    """Shows progress, measurements and checkpoints on the console."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """The run's logger, whose console leaves out what is for the file."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(lambda record: FOR_THE_FILE.match(record.getMessage()) is None)
        return logger
