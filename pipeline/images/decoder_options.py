"""The options of a decoder process, passed to it as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import orjson

from pipeline.errors import ConfigurationError
from pipeline.images.decode import DecodeLimits

MAX_SIDE = 4096
"""Largest size that an image can be scaled to, pixels."""
BACKGROUND_FACTOR = 3
"""An image in the background may take this many times its CPU time."""


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """How images are decoded, and for how long.

    Args:
        limits: limits on bytes and pixels.
        size: side of the square network input, pixels.
        timeout_s: longest time for one image, seconds; then its decoder is killed.
        background: decode only while the cores have nothing else to do. Then `timeout_s` is CPU time.
    """

    limits: DecodeLimits
    size: int
    timeout_s: float
    background: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIDE or self.timeout_s <= 0:
            raise ConfigurationError(f"size must be 1 to {MAX_SIDE} and timeout_s above 0, got {self.size} and {self.timeout_s}")

    @property
    def wall_timeout_s(self) -> float:
        """Longest wall-clock time for one image, seconds."""
        return self.timeout_s * (BACKGROUND_FACTOR if self.background else 1)

    def as_json(self) -> str:
        """For the command line of the process."""
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> DecoderOptions:
        """The reverse of `as_json`."""
        document = orjson.loads(text)
        return cls(**document | {"limits": DecodeLimits(**document["limits"])})
