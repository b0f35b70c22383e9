"""Calls of the stages: their results without Ray's wrappers, cancelling, mapping of exceptions."""

import asyncio

import pytest
from ray import exceptions as ray_exceptions
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException, RequestCancelledError

from deployments.scoring.calls import cancel, result, to_service_error
from deployments.scoring.grouping import ReplicaLost
from pipeline.errors import DeadlineExceeded, ImageError, Overloaded, StageFailed


def wrapped(cause):
    return ray_exceptions.RayTaskError("stage", "traceback", cause).as_instanceof_cause()


async def test_the_original_exception_is_raised():
    """Without a wrapper for each stage that it passed."""

    async def failing():
        raise wrapped(wrapped(ImageError("bad")))

    with pytest.raises(ImageError) as caught:
        await result(failing())
    assert not isinstance(caught.value, ray_exceptions.RayTaskError)


def test_a_call_that_cannot_be_cancelled_does_not_keep_others():
    """Such as one that failed before it was sent."""
    cancelled = []

    class Call:
        def cancel(self):
            cancelled.append(self)

    class Unsent:
        def cancel(self):
            raise RuntimeError

    call = Call()
    cancel(Unsent(), call)
    assert cancelled == [call]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ImageError("bad"), ImageError),
        (TimeoutError(), DeadlineExceeded),
        (RequestCancelledError("x"), DeadlineExceeded),
        (BackPressureError(5, 5), Overloaded),
        (DeploymentUnavailableError("x"), Overloaded),
        (ray_exceptions.ActorDiedError(), ReplicaLost),
        (ray_exceptions.ActorUnavailableError("x", b"a" * 16), ReplicaLost),
        (ray_exceptions.OutOfMemoryError("killed"), ReplicaLost),
        (ray_exceptions.NodeDiedError("gone"), ReplicaLost),
        (RayServeException("upstream died"), ReplicaLost),
        (ValueError("/secret"), StageFailed),
        (asyncio.CancelledError(), StageFailed),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exceptions_are_mapped(raised, expected):
    """To a new object of this project's errors, without internals."""
    mapped = to_service_error(raised, lambda: Overloaded("full", retry_after_s=1))
    assert type(mapped) is expected
    assert mapped is not raised
    assert "/secret" not in mapped.message
