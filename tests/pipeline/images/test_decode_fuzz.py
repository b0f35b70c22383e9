"""Thousands of mutated files in decode_image raise only our own errors, in bounded time and memory."""

import random
import resource
import time

import numpy as np
import pytest

from pipeline.errors import RequestError
from pipeline.images.decode import DecodeLimits, decode_image
from tests.security.mutants import good_files, mutate

MUTANTS_PER_SEED = 150
LIMITS = DecodeLimits(max_pixels=300_000, max_bytes=1_000_000)


@pytest.mark.parametrize("kind", good_files())
def test_mutants(kind: str) -> None:
    """A mutant decodes or raises a RequestError (4xx), quickly, and never yields more pixels than allowed."""
    chance = random.Random(kind)
    for _ in range(MUTANTS_PER_SEED):
        data = mutate(good_files()[kind], chance)
        started = time.thread_time()
        try:
            bgr, hw = decode_image(data, LIMITS, chance.choice((None, 32)))
        except RequestError:
            pass
        else:
            assert bgr.dtype == np.uint8
            assert bgr.shape[2] == 3
            assert hw[0] * hw[1] <= LIMITS.max_pixels
        assert time.thread_time() - started < 1.0


def test_memory_stays_bounded() -> None:
    """All the mutants of this module together may not have grown the process beyond a few pictures."""
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chance = random.Random(7)
    for _ in range(20):
        for data in good_files().values():
            try:
                decode_image(mutate(data, chance), LIMITS, None)
            except RequestError:
                continue
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000
