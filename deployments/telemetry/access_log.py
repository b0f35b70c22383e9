"""Keeps Ray Serve's access log off stderr: a request's line is written once, to the log file of the replica.

A replica's stderr goes to another file, which Ray's log monitor reads and sends through the GCS to every driver that follows the log
(`serve run`). Ray Serve's own proxies keep their access log off it, too. All other lines stay.
"""

import logging


def keep_off_stderr() -> None:
    """Keep the access log of this replica off stderr. Call it after Ray Serve has set up logging: in a deployment's constructor."""
    for handler in logging.getLogger("ray.serve").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_no_access_line)


def _is_no_access_line(record: logging.LogRecord) -> bool:
    return not getattr(record, "serve_access_log", False)
