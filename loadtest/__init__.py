"""Load tests of a deployment; see docs/LOADTEST.md. They need the packages of the extra `load`."""

from importlib.util import find_spec

_MISSING = [name for name in ("aiohttp", "psutil") if find_spec(name) is None]
if _MISSING:
    raise SystemExit(f"loadtest needs {' and '.join(_MISSING)}: .venv/bin/pip install -e '.[load]'")
