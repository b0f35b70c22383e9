"""Images of a batch on a cluster; files and stores are in test_cluster_stages.py, through the stage that reads them."""

import asyncio

import pytest

pytest.importorskip("pyarrow")

from jobs.scoring.cluster_images import Images
from pipeline.errors import FetchError
from pipeline.images.fetch import Fetcher, FetchPolicy


async def test_a_host_that_is_silent():
    """Reported as such: a batch has no deadline."""

    async def never(*_):
        await asyncio.sleep(60)

    policy = FetchPolicy(total_timeout_s=0.1)
    fetcher = Fetcher(policy, never)
    with pytest.raises(FetchError) as raised:
        await Images(policy).read(fetcher, "http://example.com/x.jpg")
    await fetcher.aclose()
    assert raised.value.code == "fetch_timeout"
