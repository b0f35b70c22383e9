"""Load tests of a deployment; see docs/LOADTEST.md. They need the packages of the extra `load`.

commands        __main__ (`python -m loadtest`), chaos and update; locustfile is for Locust
measurements    what a command measures: overload, spike, soak, random faults, reports
planning        what an image costs, and the replicas for a rate
load            photos as requests, and when they are sent
service         a service on this machine, and what it uses

Commands import measurements and planning, which do not know each other. These import load and service, which do not either.
"""

from importlib.util import find_spec

_MISSING = [name for name in ("aiohttp", "psutil") if find_spec(name) is None]
if _MISSING:
    raise SystemExit(f"loadtest needs {' and '.join(_MISSING)}: .venv/bin/pip install -e '.[load]'")
