"""The exceptions that cross module boundaries; some modules derive their own from these. HTTP status and code of each:

    ServiceError
    ├── RequestError                    the caller's fault, 4xx
    │   ├── InvalidRequest        400   invalid_request
    │   ├── Unauthorized          401   unauthorized
    │   ├── DeadlineExceeded      408   deadline_exceeded
    │   ├── LimitExceeded         413   body_too_large, image_too_large, too_many_pixels, too_many_images,
    │   │   │                             answer_too_large
    │   │   └── LargeImage      413   a signal: decode this image in a call of its own
    │   ├── UnsupportedMediaType  415   unsupported_media_type
    │   ├── ImageError            422   image_not_decodable, invalid_base64, unsupported_image_format
    │   │   └── FetchError        422   url_refused, fetch_failed, fetch_unavailable, fetch_timeout
    │   └── HeaderTooLarge        431   header_too_large
    ├── Overloaded                503   overloaded (429 if the operator prefers it), with Retry-After
    ├── StageFailed               500   internal_error: a replica died or raised an unexpected exception
    │   ├── EngineFailed                out of memory (EngineOutOfMemory), or the device failed (EngineLost)
    │   └── DecodersUnavailable         no decoder process starts in this replica
    └── SetupError                      the service cannot start; never reaches a client
        ├── ConfigurationError
        ├── CheckpointError
        ├── DownloadError
        └── EngineUnavailable

    ShapeError (ValueError)             an array of the wrong shape or dtype: a bug of this project

Exceptions of libraries are mapped to these where they occur (`raise ... from`). All of these can be pickled, because Ray sends them between
processes. Their messages are for clients: no paths, no addresses, no tracebacks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ImageFault:
    """The error of one image of a request: the image's position, the code and the message."""

    index: int
    code: str
    message: str


def quoted(names: Iterable[object]) -> str:
    """Names from a caller, shortened for an error message: at most five, of at most 40 characters."""
    listed = sorted(map(str, names))
    shown = [repr(name if len(name) <= 40 else name[:40] + "…") for name in listed[:5]]
    return ", ".join(shown) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


class ServiceError(Exception):
    """Base class of all errors of this project: a `message` for people, a `code` for programs, an HTTP `status`.

    `faults` lists the images that failed, if the error is about images of a request.
    """

    status: int = 500
    code: str = "internal_error"
    faults: tuple[ImageFault, ...] = ()

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, dict(self.__dict__))


def _rebuild(cls: type[ServiceError], message: str, state: dict[str, Any]) -> ServiceError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class RequestError(ServiceError):
    """The request is wrong."""

    status = 400
    code = "invalid_request"


class InvalidRequest(RequestError):
    """The request does not follow the contract; the message names the place."""


class Unauthorized(RequestError):
    """Keys are set and the bearer key is missing or wrong."""

    status = 401
    code = "unauthorized"


class DeadlineExceeded(RequestError):
    """The request's own deadline passed before its work was done."""

    status = 408
    code = "deadline_exceeded"


class LimitExceeded(RequestError):
    """Something is larger than a limit; the message names the limit and its value.

    Args:
        message: what is too large, the name of the setting and its value.
        code: `body_too_large`, `image_too_large`, `too_many_pixels`, `too_many_images` or `answer_too_large`.
    """

    status = 413
    code = "too_large"


class LargeImage(LimitExceeded):
    """Signal: this image is large to decode; decode it in a call of its own."""

    code = "too_many_pixels"


class UnsupportedMediaType(RequestError):
    """The content type is none that POST /score reads, or the body is compressed."""

    status = 415
    code = "unsupported_media_type"


class ImageError(RequestError):
    """An image cannot be read: `image_not_decodable`, `invalid_base64` or `unsupported_image_format`."""

    status = 422
    code = "image_not_decodable"


class FetchError(ImageError):
    """An image cannot be fetched: `url_refused` (by policy) or `fetch_failed`; `fetch_timeout` and `fetch_unavailable` are worth a
    retry."""

    code = "fetch_failed"


class HeaderTooLarge(RequestError):
    """A request header, or the URL and all headers together, are longer than allowed."""

    status = 431
    code = "header_too_large"


class Overloaded(ServiceError):
    """The service cannot take this work now; retry after `retry_after_s`.

    Args:
        retry_after_s: seconds after which a retry is sensible; becomes the Retry-After header.
    """

    status = 503
    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 1, status: int = 503) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s


class StageFailed(ServiceError):
    """A stage died or raised an unexpected exception. The cause is in the log, not in the response."""


class EngineFailed(StageFailed):
    """The engine or its device failed. The message is for the operator and contains the library's message."""


class EngineOutOfMemory(EngineFailed):
    """The batch does not fit into the device's memory; a smaller one may."""


class EngineLost(EngineFailed):
    """This process cannot use the device any more: its replica must be replaced."""


class DecodersUnavailable(StageFailed):
    """No decoder process starts, so this replica cannot load files. Another replica may."""


class SetupError(ServiceError):
    """The service cannot start with this configuration; the message says what to change."""

    code = "setup_error"


class ConfigurationError(SetupError):
    """Settings are invalid or contradict each other."""


class CheckpointError(SetupError):
    """A model file is damaged, unsafe, or does not fit the model."""


class DownloadError(SetupError):
    """A model file could not be downloaded; the message names the URL and where to put the file by hand."""


class EngineUnavailable(SetupError):
    """The chosen engine cannot run on this machine; the message says what is missing."""


class ShapeError(ValueError):
    """An array has the wrong shape or dtype; the message prints the expected and the actual ones."""
