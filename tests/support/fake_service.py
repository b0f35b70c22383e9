"""A service with known latency on loopback, to test the load tester."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import orjson
import psutil
from aiohttp import web

from loadtest.load.traffic import request_bodies

ANSWER = {"boxes": [{"box": {}, "label": "person", "score": 0.9, "polygon": []}]}
BODIES = request_bodies([b"photo"], 1)


@asynccontextmanager
async def fake_service(step_s=0.005, servers=1, max_waiting=10_000, stall=None, answer=None, key=None, urls=True, refused=422):
    """Base URL of a service that takes `step_s` a request on `servers` servers and refuses beyond `max_waiting`.

    Args:
        stall: (number, seconds): from that request on, every request waits once for this long.
        answer: body of every 200 instead of the right one.
        key: the bearer key without which everything is a 401.
        urls: whether it fetches; else a URL is refused with the status `refused`.
    """
    seats, state = asyncio.Semaphore(servers), {"count": 0, "waiting": 0}

    async def score(request):
        data = orjson.loads(await request.read())["input_data"]["data"]
        images = len(data)
        if key and request.headers.get("authorization") != f"Bearer {key}":
            return web.json_response({"message": "no key", "code": "unauthorized"}, status=401)
        if not urls and any(text.startswith("http") for text in data):
            return web.json_response({"message": "The URL is refused.", "code": "url_refused"}, status=refused)
        if state["waiting"] >= max_waiting:
            return web.json_response({"message": "full", "code": "overloaded"}, status=503, headers={"Retry-After": "1"})
        state["waiting"] += 1
        state["count"] += 1
        number = state["count"]
        async with seats:
            await asyncio.sleep(stall[1] if stall and number == stall[0] else step_s)
        state["waiting"] -= 1
        headers = {"server-timing": f"decode;dur=1.5, detect;dur={step_s * 1e3}"}
        body = answer if answer is not None else orjson.dumps([ANSWER] * images)
        return web.Response(body=body, content_type="application/json", headers=headers)

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/score", score)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def service_at(url):
    """What measurements use of a LocalService, with this process as its only one."""
    return SimpleNamespace(url=url, processes=lambda: [psutil.Process()], replica_pids=lambda _: [])
