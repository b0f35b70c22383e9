"""Batch sizes for which a graph is recorded."""

import pytest

from pipeline.inference.cuda.graphs import default_buckets


@pytest.mark.parametrize(("most", "buckets"), [(1, (1,)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))])
def test_default_buckets(most, buckets):
    """Powers of two and the largest batch."""
    assert default_buckets(most) == buckets
