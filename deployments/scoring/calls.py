"""Awaits and cancels the calls of the stages; maps their exceptions to this project's errors.

ServiceError                                 unchanged
TimeoutError, RequestCancelledError     ─▶   DeadlineExceeded
BackPressureError, deployment missing   ─▶   Overloaded
LOST_REPLICA                            ─▶   ReplicaLost, which is retried
anything else                           ─▶   StageFailed, and a line in the log
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from typing import Any

from ray import exceptions as ray_exceptions
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentResponse

from deployments.scoring.grouping import ReplicaLost
from deployments.stages.in_process import LocalResponse
from pipeline.errors import DeadlineExceeded, Overloaded, ServiceError, StageFailed

logger = logging.getLogger("ray.serve")

LOST_REPLICA = (
    ray_exceptions.RayActorError,
    ray_exceptions.ActorUnschedulableError,
    ray_exceptions.NodeDiedError,
    ray_exceptions.OutOfMemoryError,  # Ray's memory monitor ended the replica
    ray_exceptions.ObjectLostError,
    ray_exceptions.WorkerCrashedError,
    ray_exceptions.LocalRayletDiedError,
    RayServeException,  # from the router: the replica of an earlier stage died while it produced this call's argument
)
"""Exceptions of a call whose replica died."""


async def result(response: DeploymentResponse[Any] | LocalResponse) -> Any:
    """The result of a call; if it failed, raises the original exception without Ray's wrappers, of which each stage adds one."""
    try:
        return await response
    except ray_exceptions.RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, ray_exceptions.RayTaskError) and isinstance(cause.cause, Exception):
            cause = cause.cause
        raise cause from None


def cancel(*responses: DeploymentResponse[Any] | LocalResponse) -> None:
    """Cancel calls. Errors are ignored: a call that failed before it was sent raises here."""
    for response in responses:
        with suppress(Exception):
            response.cancel()


def to_service_error(error: BaseException, refusal: Callable[[], Overloaded]) -> ServiceError:
    """Map the exception of a call. Returns a new object each time, because it is raised once for each image.

    Args:
        refusal: makes the error of a stage that takes no more calls.
    """
    if isinstance(error, ServiceError):
        return copy(error)
    if isinstance(error, TimeoutError | RequestCancelledError):
        return DeadlineExceeded("The request's deadline passed before its images were scored.")
    if isinstance(error, BackPressureError | DeploymentUnavailableError):
        return refusal()
    if isinstance(error, LOST_REPLICA):
        return ReplicaLost("A replica was lost while it worked on this image.")
    logger.error("unexpected error in the scoring graph", exc_info=error)
    return StageFailed("The service failed on this image.")
