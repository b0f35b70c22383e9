"""Waiting in tests of asyncio code, without a time."""

import asyncio

STEPS = 200


async def settle() -> None:
    """Until every task has gone as far as it can without a timer or another thread, however busy the machine is."""
    for _ in range(STEPS):
        await asyncio.sleep(0)
