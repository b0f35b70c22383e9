"""What every stage does around its work: check the deadline, measure, count, and turn surprises into known errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deployments.context import RequestContext
from deployments.metrics import StageMetrics
from pipeline.errors import Overloaded, RequestError, ServiceError, StageFailed

logger = logging.getLogger("ray.serve")


def one_line_for_refusals(record: logging.LogRecord) -> bool:
    """A logging filter: Ray Serve logs a traceback of some kilobytes for every exception; a bad image is worth a line."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, RequestError | Overloaded):
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args, record.exc_info, record.exc_text = f"Refused: {error.code}", (), None, None
    return True


class Stage:
    """One stage's name and metrics.

    Args:
        name: `image_loader`, `detector` or `polygonizer`; metric label, log field and error text.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._metrics = StageMetrics(name)
        logger.addFilter(one_line_for_refusals)

    @contextmanager
    def guard(self, context: RequestContext) -> Iterator[None]:
        """Run one image's work: refuse it late, time it, count it, and never let a foreign exception out.

        Raises:
            DeadlineExceeded: the deadline passed before the work began.
            ServiceError: what the work raised itself.
            StageFailed: anything else the work raised; the cause is logged with the request id, not sent on.
        """
        began = time.perf_counter()
        try:
            context.check(self.name)
            yield
        except ServiceError as error:
            self._metrics.failed(error.code)
            raise
        except Exception as error:
            self._metrics.failed(StageFailed.code)
            logger.exception("stage %s failed, request %s", self.name, context.request_id)
            raise StageFailed(f"The {self.name} stage failed on this image.") from error
        self._metrics.done((time.perf_counter() - began) * 1e3)
