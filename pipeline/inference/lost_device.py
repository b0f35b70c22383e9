"""Ends a process whose device failed.

Ray replaces an actor that fails three health checks in a row, seconds after the failure. Until then its calls fail at once, so it always
looks idle and gets most calls, retried ones too. If its process ends, Ray knows within a moment: waiting calls go to other replicas.
"""

from __future__ import annotations

import logging
import os
from typing import NoReturn

from pipeline.errors import EngineLost

EXIT_STATUS = 70
"""EX_SOFTWARE of sysexits.h; Ray's log shows it."""


def end_process(error: EngineLost, logger: logging.Logger) -> NoReturn:
    """Log the error and end this process, in whatever thread, without cleaning up: calls of a failed device may hang.

    Args:
        error: why.
        logger: writes the error, before it is flushed with all others.
    """
    logger.critical("this process ends, to be replaced: %s", error, exc_info=error)
    logging.shutdown()
    os._exit(EXIT_STATUS)
