"""Load tests of a deployment; see docs/LOADTEST.md. They need the packages of the extra `load`.

commands      __main__ ─▶ scenarios (rate_search), overload, spike, soak, costs (engine_alone), planner (plan_check), report (plots)
              chaos (faults) and update are commands of their own
load          traffic, photos, image_server ─▶ openloop; with Locust: locustfile (shapes)
the service   local_service, local_cluster (node_network, load_balancer), machine
its own use   watch: processes; scrape: metrics
"""

from importlib.util import find_spec

_MISSING = [name for name in ("aiohttp", "psutil") if find_spec(name) is None]
if _MISSING:
    raise SystemExit(f"loadtest needs {' and '.join(_MISSING)}: .venv/bin/pip install -e '.[load]'")
