"""Log of a replica: the warnings of `pipeline` are in its file, and access lines only there, not on stderr.

Ray Serve sets up only its own logger. A replica's stderr goes to another file, which Ray's log monitor reads and sends through the GCS to
every driver that follows the log (`serve run`). Ray Serve's own proxies keep their access log off it, too. All other lines stay.
"""

import logging

RAY_SERVE = "ray.serve"


def keep_off_stderr() -> None:
    """Keep the access log of this replica off stderr. Call it after Ray Serve has set up logging: in a deployment's constructor."""
    for handler in logging.getLogger(RAY_SERVE).handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_no_access_line)


def include_pipeline() -> None:
    """Write the warnings of `pipeline` as this replica's own lines. Call it after Ray Serve has set up logging: in a constructor."""
    # The same list: Ray Serve changes it when the configuration of logs changes.
    logging.getLogger("pipeline").handlers = logging.getLogger(RAY_SERVE).handlers


def _is_no_access_line(record: logging.LogRecord) -> bool:
    return not getattr(record, "serve_access_log", False)
