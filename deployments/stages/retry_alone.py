"""Images of a call wait for each other: one that would delay the others is retried in a call of its own.

ImageLoader.load(several) ─▶ too slow (SharedDecoding) or too large: RetryAlone ─▶ ScoringGraph ─▶ ImageLoader.load(one)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pipeline.errors import StageFailed
from pipeline.images.decoder_pool import DecoderTimeout
from pipeline.types import LoadedImage

SHARED_DECODE_S = 1.0
"""Longest time to decode one image in a call of several, seconds. Ordinary images that take longer are files of many megabytes, which have
calls of their own anyway. The images of a call share a budget of this time per decoder."""
MIN_SHARED_DECODE_S = 0.4
"""Time limit of an image once the budget of its call is spent, seconds."""


class RetryAlone(StageFailed):
    """Signal: retry this image in a call of its own. Not counted as an error."""


class SharedDecoding:
    """The decoding time that the images of one call share.

    Args:
        decoders: number of decoders that work at a time.
    """

    def __init__(self, decoders: int) -> None:
        self._left_s = SHARED_DECODE_S * decoders
        self._lock = threading.Lock()

    def load(self, decode: Callable[[float], LoadedImage]) -> LoadedImage:
        """Decode one image of the call.

        Args:
            decode: decodes it; takes the time limit, seconds.
        Raises:
            RetryAlone: decoding took longer than the limit.
        """
        limit_s = min(max(self._left_s, MIN_SHARED_DECODE_S), SHARED_DECODE_S)
        began = time.monotonic()
        try:
            return decode(limit_s)
        except DecoderTimeout as error:
            raise RetryAlone(f"The image took more than {limit_s:g} s to decode in a call with other images.") from error
        finally:
            with self._lock:
                self._left_s -= time.monotonic() - began
