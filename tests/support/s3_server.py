"""A local S3 server, moto's, in this process; AWS_ENDPOINT_URL and throw-away credentials lead to it, also in child processes."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import requests


@contextmanager
def s3_server(bucket: str = "bucket") -> Iterator[None]:
    """An empty bucket, until the block ends."""
    moto = pytest.importorskip("moto.server")
    from pyarrow import fs

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        with mock.patch.dict(os.environ, keys | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}):
            requests.post(
                f"http://{host}:{port}/moto-api/reset", timeout=10
            )  # moto keeps its buckets for the life of the process
            fs.S3FileSystem(allow_bucket_creation=True, endpoint_override=f"{host}:{port}", scheme="http").create_dir(bucket)
            yield
    finally:
        server.stop()
