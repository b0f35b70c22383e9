"""The asynchronous tests of this folder run in virtual time."""

from tests.support.virtual_time import VirtualTimeLoop


def pytest_asyncio_loop_factories():
    return {"virtual time": VirtualTimeLoop}
