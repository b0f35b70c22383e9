"""The chain of stages with fake handles: order, retries, isolation, mapping of Ray's errors, cancelling."""

import asyncio
import random
import time

import numpy as np
import pytest
from ray import exceptions as ray_exceptions
from ray.serve.exceptions import BackPressureError

from deployments.scoring import graph as scoring
from deployments.scoring.graph import ScoringGraph
from deployments.scoring.grouping import HANG_IF_OVERTAKEN_S
from deployments.settings import IngressSettings
from deployments.stages.retry_alone import RetryAlone
from deployments.task import RequestContext, ScoreOptions
from pipeline.errors import (
    DeadlineExceeded,
    DecodersUnavailable,
    EngineLost,
    FetchError,
    ImageError,
    ImageFault,
    Overloaded,
    ServiceError,
    StageFailed,
)
from pipeline.types import DetectOptions, OutlineOptions
from tests.support.event_loop import settle


class FakeResponse:
    """Awaitable like a DeploymentResponse; remembers whether it was cancelled."""

    def __init__(self, work):
        self._work = work
        self.cancelled = False

    def __await__(self):
        return self._work().__await__()

    def cancel(self):
        self.cancelled = True


class FakeStages:
    """All three stages in one.

    `behave(image, attempt)` gives an image's answer or error as the last stage would, or awaits; an error that is not ours
    fails the whole call.
    """

    def __init__(self, behave):
        self._behave = behave
        self.attempts = {}
        self.responses = []
        self.groups = []
        self.tasks = []
        self.load = self.detect = self.outline = self
        self.fetch = FakeFetch()

    def remote(self, first, *_):
        if not isinstance(first, FakeResponse):
            self.groups.append([task.payload for task in first])
            self.tasks += first
        images = self.groups[-1]

        async def work():
            return [await self._answer(image) for image in images]

        response = FakeResponse(work)
        self.responses.append(response)
        return response

    async def _answer(self, image):
        self.attempts[image] = self.attempts.get(image, 0) + 1
        outcome = self._behave(image, self.attempts[image])
        outcome = await outcome if asyncio.iscoroutine(outcome) else outcome
        if isinstance(outcome, BaseException) and not isinstance(outcome, ServiceError):
            raise outcome
        return outcome


class FakeFetch:
    """Passes URLs on as if their bodies were too long; with `bodies`, returns the body or error of each URL, or awaits it."""

    def __init__(self):
        self.bodies = {}

    def remote(self, tasks):
        async def work():
            return [task.after(await self._body(task.payload), {"fetch": 1.0}) for task in tasks]

        return FakeResponse(work)

    async def _body(self, url):
        body = self.bodies.get(url, url)
        return await body if asyncio.iscoroutine(body) else body


def graph(stages, **settings):
    return ScoringGraph(stages, stages, stages, IngressSettings(**{"overload_status": 429, "retry_after_s": 4, **settings}))


def options(**changes):
    return ScoreOptions(DetectOptions(), OutlineOptions(), **changes)


def context(seconds=10.0):
    return RequestContext("test", time.time() + seconds)


def of(caller, seconds=10.0):
    return RequestContext("test", time.time() + seconds, caller)


def wrapped(cause):
    return ray_exceptions.RayTaskError("stage", "traceback", cause).as_instanceof_cause()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(scoring, "RETRY_DELAYS_S", (0.0, 0.0, 0.0))


async def test_answers_keep_the_order_of_the_images():
    """Regardless of the order in which they finish."""

    async def slow(image):
        await asyncio.sleep(0.05 if image == "a" else 0)
        return image.upper()

    assert await graph(FakeStages(lambda image, _: slow(image))).score(["a", "b"], options(), context()) == ["A", "B"]


async def test_a_lost_replica_is_tried_again():
    """The image is scored again, and the caller gets its answer."""
    error = ray_exceptions.ActorDiedError()
    stages = FakeStages(lambda image, attempt: error if attempt < 3 else image)
    assert await graph(stages).score(["a"], options(), context()) == ["a"]
    assert stages.attempts["a"] == 3


@pytest.mark.parametrize("error", [EngineLost("gone"), DecodersUnavailable("none starts")], ids=["GPU", "decoders"])
async def test_an_image_is_retried_if_another_replica_may_score_it(error):
    """The replica fails fast and therefore looks idle until Ray replaces it: another one may well score the image."""
    stages = FakeStages(lambda image, attempt: error if attempt < 3 else image)
    assert await graph(stages).score(["a"], options(), context()) == ["a"]


@pytest.mark.parametrize("error", [EngineLost("gone"), DecodersUnavailable("none starts")], ids=["GPU", "decoders"])
async def test_a_lost_device_in_this_process_is_not_retried(error, monkeypatch):
    """There is no other replica to try."""
    monkeypatch.setattr(scoring, "LocalHandle", FakeStages)
    stages = FakeStages(lambda *_: error)
    with pytest.raises(type(error)):
        await graph(stages).score(["a"], options(), context())
    assert stages.attempts["a"] == 1


async def test_a_silent_replica_costs_seconds():
    """Its image is scored again elsewhere, while others are answered."""

    def behave(image, attempt):
        return asyncio.sleep(60) if (image, attempt) == ("silent", 1) else image

    stages = FakeStages(behave)
    scoring_graph = graph(stages)
    async with asyncio.timeout(HANG_IF_OVERTAKEN_S + 0.1):
        silent = asyncio.create_task(scoring_graph.score(["silent"], options(), context()))
        await asyncio.sleep(0.01)  # a group of its own
        while not silent.done():
            await scoring_graph.score(["other"], options(), context())
            await asyncio.sleep(0.01)
    assert await silent == ["silent"]
    assert stages.attempts["silent"] == 2
    assert all(response.cancelled for response in stages.responses[:3])


@pytest.mark.parametrize(
    ("image", "answer_format", "in_process", "tries_s"),
    [
        pytest.param("photo", "json", False, [0, 6, 12, 18], id="ordinary"),
        pytest.param("https://example.com/1.jpg", "json", False, [0, 20, 40, 60], id="URL"),
        pytest.param("photo", "png", False, [0, 40, 80, 120], id="large"),
        pytest.param("https://example.com/1.jpg", "png", False, [0, 40, 80, 120], id="large URL"),
        pytest.param("photo", "json", True, [0], id="ordinary, in process"),
        pytest.param("https://example.com/1.jpg", "json", True, [0], id="URL, in process"),
        pytest.param("photo", "png", True, [0], id="large, in process"),
    ],
)
async def test_a_silent_call_is_given_up_after_the_time_of_its_lane(image, answer_format, in_process, tries_s, monkeypatch):
    """Only the last try waits for the deadline: where a stage is away for long, its images are not lost before it."""
    if in_process:
        monkeypatch.setattr(scoring, "LocalHandle", FakeStages)
    tried_s = []

    def behave(image, _):
        tried_s.append(time.monotonic() - began_s)
        return image if image == "first" else asyncio.sleep(1e6)

    stages = FakeStages(behave)
    scoring_graph = ScoringGraph(stages, stages, stages, IngressSettings(), url_hang_s=20, large_hang_s=40)
    began_s = time.monotonic()
    await scoring_graph.score(["first"], options(), context())
    with pytest.raises(DeadlineExceeded):
        await scoring_graph.score([image], options(answer_format=answer_format), context(200))
    assert time.monotonic() - began_s == pytest.approx(200)
    assert tried_s[1:] == pytest.approx(tries_s, abs=0.1)


async def test_model_info_of_a_detector_that_does_not_answer():
    """A detector that does not answer is a refusal in time; one that fails, an error of ours."""

    silent = FakeResponse(lambda: asyncio.sleep(60))

    class Silent:
        def remote(self):
            return silent

    class Lost:
        def remote(self):
            async def work():
                raise ray_exceptions.ActorDiedError()

            return FakeResponse(work)

    stages = FakeStages(None)
    stages.info = Silent()
    with pytest.raises(Overloaded):
        await graph(stages).model_info(0.01)
    assert silent.cancelled
    stages.info = Lost()
    with pytest.raises(StageFailed):
        await graph(stages).model_info(1)


async def test_a_wrapped_lost_replica_is_tried_again():
    """Also when the death arrives inside a RayTaskError of a later stage."""
    stages = FakeStages(lambda image, attempt: wrapped(ray_exceptions.ActorDiedError()) if attempt < 2 else image)
    assert await graph(stages).score(["a"], options(), context()) == ["a"]


async def test_a_replica_that_stays_lost_is_a_500_without_internals():
    """After the last try it is a 500 that names no internals."""
    stages = FakeStages(lambda *_: ray_exceptions.ActorDiedError())
    with pytest.raises(StageFailed) as caught:
        await graph(stages).score(["a"], options(), context())
    assert stages.attempts["a"] == 4
    assert "replica was lost" in caught.value.message


@pytest.mark.parametrize(
    ("raised", "expected", "status"),
    [
        pytest.param(BackPressureError(5, 5), Overloaded, 429, id="queue full"),
        pytest.param(ImageError("bad"), ImageError, 422, id="our error, in the image's place"),
        pytest.param(wrapped(ImageError("bad")), ImageError, 422, id="our error through Ray"),
        pytest.param(ValueError("/secret"), StageFailed, 500, id="a bug"),
    ],
)
async def test_exceptions_of_ray_are_mapped_to_our_errors(raised, expected, status):
    """Each with its status and the image's index, without internals."""
    with pytest.raises(expected) as caught:
        await graph(FakeStages(lambda *_: raised)).score(["a"], options(), context())
    assert caught.value.status == status
    assert [fault.index for fault in caught.value.faults] == [0]
    assert "/secret" not in caught.value.message


async def test_first_failure_cancels_the_rest():
    """Without isolation the other images are cancelled."""

    async def forever():
        await asyncio.sleep(60)

    async def bad_soon():
        await asyncio.sleep(0.02)
        return ImageError("bad")

    stages = FakeStages(lambda image, _: forever() if "slow" in image else bad_soon())
    began = time.perf_counter()
    with pytest.raises(ImageError) as caught:
        await graph(stages).score(["http://slow", "bad"], options(), context())
    await asyncio.sleep(0.05)
    assert time.perf_counter() - began < 1
    assert [fault.index for fault in caught.value.faults] == [1]
    first = 3 * stages.groups.index(["http://slow"])
    assert all(response.cancelled for response in stages.responses[first : first + 3])


async def test_isolation_keeps_the_good_ones():
    """A bad image leaves a fault in its place."""
    stages = FakeStages(lambda image, _: ImageError("bad") if image == "bad" else image)
    assert await graph(stages).score(["a", "bad", "b"], options(isolate=True), context()) == [
        "a",
        ImageFault(1, "image_not_decodable", "bad"),
        "b",
    ]


async def test_isolation_does_not_hide_overload():
    """A full service refuses the request, isolated or not."""
    with pytest.raises(Overloaded):
        await graph(FakeStages(lambda *_: BackPressureError(5, 5))).score(["a"], options(isolate=True), context())


async def test_deadline_ends_the_wait_and_the_work():
    """The caller gets its error in time, and the calls of all stages are cancelled."""

    async def forever():
        await asyncio.sleep(60)

    stages = FakeStages(lambda *_: forever())
    with pytest.raises(DeadlineExceeded):
        await graph(stages).score(["a"], options(), context(0.05))
    await asyncio.sleep(0)
    assert stages.responses
    assert all(response.cancelled for response in stages.responses)


async def test_a_deadline_that_has_passed_starts_nothing():
    """Late requests cost no call."""
    stages = FakeStages(lambda image, _: image)
    with pytest.raises(DeadlineExceeded):
        await graph(stages).score(["a"], options(), context(-1))
    assert not stages.responses


async def test_no_images():
    """Nothing in, nothing out."""
    assert await graph(FakeStages(lambda image, _: image)).score([], options(), context()) == []


async def test_images_of_a_request_share_calls():
    """Twenty images: groups of eight, one call each between the stages; URLs travel alone, they may take long."""
    stages = FakeStages(lambda image, _: image)
    images = [f"image{number}" for number in range(18)] + ["https://example.com/1.jpg", "data:image/png;base64,AA=="]
    assert await graph(stages).score(images, options(), context()) == images
    assert sorted(map(len, stages.groups)) == [1, 3, 8, 8]
    assert ["https://example.com/1.jpg"] in stages.groups


@pytest.mark.parametrize("image", [b"x" * 600, "x" * 600, np.zeros((10, 20, 3), np.uint8)], ids=["bytes", "base64", "pixels"])
async def test_images_too_large_for_a_group_have_calls_of_their_own(image):
    stages = FakeStages(None)
    stages._answer = lambda _: asyncio.sleep(0, "answer")
    await graph(stages, groups={"max_mb": 0.001}).score([image] * 4, options(), context())
    assert [len(group) for group in stages.groups] == [1] * 4


async def test_a_lost_group_is_tried_again_image_by_image():
    """So that an image that kills its replica does not affect the others twice."""
    stages = FakeStages(lambda image, _: ray_exceptions.ActorDiedError() if image == "c" else image)
    answers = await graph(stages).score(["a", "b", "c"], options(isolate=True), context())
    assert answers[:2] == ["a", "b"]
    assert isinstance(answers[2], ImageFault)
    assert stages.groups[0] == ["a", "b", "c"]
    assert all(len(group) == 1 for group in stages.groups[1:])


async def test_slow_images_are_retried_one_at_a_time():
    """Out of their group, whose others are answered, and never so many that they take all decoders."""
    now, most = 0, 0

    async def alone(image):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return image

    def behave(image, attempt):
        if not image.startswith("slow"):
            return image
        return RetryAlone("slow") if attempt == 1 else alone(image)

    stages = FakeStages(behave)
    images = ["slow1", "a", "slow2", "b", "slow3"]
    assert await graph(stages).score(images, options(), context()) == images
    assert stages.groups[0] == images
    assert all(len(group) == 1 for group in stages.groups[1:])
    assert most == 1


async def test_the_first_of_several_faults_is_raised():
    """It names all images that failed."""
    with pytest.raises(ImageError, match="one") as caught:
        await graph(FakeStages(lambda image, _: ImageError(image))).score(["one", "two"], options(), context())
    assert [(fault.index, fault.message) for fault in caught.value.faults] == [(0, "one"), (1, "two")]


async def test_errors_are_never_shared():
    """Two requests in one lost group: each error names its own request's images."""
    stages = FakeStages(lambda *_: BackPressureError(5, 5))
    both = graph(stages)
    errors = await asyncio.gather(
        both.score(["a"], options(), context()), both.score(["b", "c"], options(), context()), return_exceptions=True
    )
    assert stages.groups == [["a", "b", "c"]]
    assert len(errors[0].faults) == 1
    assert errors[0] is not errors[1]


async def test_images_that_would_miss_their_deadline_are_refused_at_once():
    """Behind a queue of two seconds a deadline of 0.2 s is refused before it costs a call; a longer one is served."""

    async def slow(image):
        await asyncio.sleep(0.05)
        return image

    stages = FakeStages(lambda image, _: slow(image))
    busy = graph(stages)
    await busy.score([f"first{n}" for n in range(8)], options(), context())
    queue = asyncio.create_task(busy.score([f"queued{n}" for n in range(40)], options(), context()))
    await settle()
    calls, began = len(stages.groups), time.perf_counter()
    with pytest.raises(Overloaded) as caught:
        await busy.score(["hasty"], options(), context(0.2))
    assert time.perf_counter() - began < 1
    assert caught.value.status == 429
    assert len(stages.groups) == calls
    assert await busy.score(["patient"], options(), context(20)) == ["patient"]
    await queue


async def test_slow_urls_do_not_block_other_images():
    """At most max_urls_in_flight URLs occupy a call; other images are not delayed."""
    fetched = asyncio.Event()

    async def fetch(image):
        await fetched.wait()
        return image

    stages = FakeStages(lambda image, _: fetch(image) if image.startswith("https:") else image)
    few = graph(stages, max_urls_in_flight=2)
    urls = [f"https://example.com/{number}.jpg" for number in range(5)]
    slow = asyncio.create_task(few.score(urls, options(), context()))
    await settle()
    assert len(stages.groups) == 2
    assert await few.score(["photo"], options(), context(5)) == ["photo"]
    fetched.set()
    assert await slow == urls


async def test_urls_of_a_dead_host_do_not_delay_those_of_others():
    """24 of them and one other share 12 slots; they fail together, when the first ones time out."""
    gave_up = asyncio.Event()

    async def dead():
        await gave_up.wait()
        return FetchError("too long", code="fetch_timeout")

    stages = FakeStages(lambda image, _: image)
    urls = [f"http://{number}.dead.test/a.jpg" for number in range(24)]
    stages.fetch.bodies = {url: dead() for url in urls}
    few = graph(stages, max_urls_in_flight=12)
    slow = asyncio.create_task(few.score(urls, options(isolate=True), context()))
    await settle()
    assert await few.score(["http://photos.test/a.jpg"], options(), context(5)) == ["http://photos.test/a.jpg"]
    assert not slow.done()
    gave_up.set()
    assert [fault.code for fault in await slow] == ["fetch_timeout"] * 24
    for body in stages.fetch.bodies.values():
        body.close()


async def test_what_was_fetched_shares_calls():
    """Four URLs that are fetched while a call is under way share the next one; a slow one delays none, a failed one fails alone."""
    held, silent = Held("busy"), asyncio.Event()

    async def slow():
        await silent.wait()
        return b"slow"

    stages = FakeStages(lambda image, attempt: image if isinstance(image, bytes) else held(image, attempt))
    urls = [f"https://example.com/{n}.jpg" for n in range(6)]
    stages.fetch.bodies = dict.fromkeys(urls[:4], b"body") | {urls[4]: slow(), urls[5]: FetchError("no")}
    busy = graph(stages, groups={"max_in_flight": 1})
    other = asyncio.create_task(busy.score(["busy"], options(), context()))
    await settle()
    found = asyncio.create_task(busy.score(urls, options(isolate=True), context()))
    await asyncio.sleep(0.05)
    held.release.set()
    await other
    await settle()
    assert stages.groups == [["busy"], [b"body"] * 4]
    silent.set()
    assert await found == [b"body"] * 4 + [b"slow", ImageFault(5, "fetch_failed", "no")]
    assert stages.tasks[1].timings_ms == {"fetch": 1.0}


async def test_a_long_body_has_calls_of_its_own():
    stages = FakeStages(lambda image, _: image)
    url = "https://example.com/long.jpg"
    assert await graph(stages).score([url], options(), context()) == [url]
    assert stages.groups == [[url]]
    assert not stages.tasks[0].large


async def test_the_probe_does_not_queue():
    """Readiness is whether the stages answer, not how many images wait for them."""
    release = asyncio.Event()

    async def held(image):
        await release.wait()
        return image

    stages = FakeStages(lambda image, _: image if image == "probe" else held(image))
    busy = graph(stages)
    queue = asyncio.create_task(busy.score([f"queued{n}" for n in range(40)], options(), context()))
    await settle()
    await busy.probe("probe", options(), context(1))
    assert stages.groups[-1] == ["probe"]
    assert not queue.done()
    release.set()
    await queue


class Held:
    """Images whose names begin with one of `kinds` wait until they are released."""

    def __init__(self, *kinds):
        self.kinds, self.release = kinds, asyncio.Event()

    def __call__(self, image, _):
        return self._wait(image) if image.startswith(self.kinds) else image

    async def _wait(self, image):
        await self.release.wait()
        return image


async def test_many_urls_do_not_block_other_images():
    """Six requests of 64 slow URLs: what has no room among URLs is refused at once; ordinary images all pass."""
    held = Held("http")
    busy = graph(FakeStages(held), max_images_in_flight=64, max_urls=256)
    urls = [f"https://example.com/{n}.jpg" for n in range(64)]
    flood = [asyncio.create_task(busy.score(urls, options(), context())) for _ in range(6)]
    await settle()
    refused = [task for task in flood if task.done()]
    assert len(refused) == 2
    assert all(task.exception().status == 429 for task in refused)
    for _ in range(3):
        assert await busy.score(["a"] * 64, options(), context(5)) == ["a"] * 64
    held.release.set()
    await asyncio.gather(*flood, return_exceptions=True)
    assert [lane.admitted for lane in busy.admission.lanes] == [0, 0, 0]


async def test_urls_that_would_be_late_are_refused_early():
    """URLs have a pace of their own: at 20 a second a hundred of them do not end within 2 s."""

    async def fetch(image):
        await asyncio.sleep(0.05)
        return image

    slow = graph(FakeStages(lambda image, _: fetch(image)), max_urls_in_flight=1)
    await slow.score(["https://example.com/1.jpg"] * 10, options(), context())
    queue = asyncio.create_task(slow.score(["https://example.com/1.jpg"] * 64, options(), context(20)))
    await settle()
    began = time.perf_counter()
    with pytest.raises(Overloaded) as caught:
        await slow.score(["https://example.com/1.jpg"] * 20, options(), context(2))
    assert time.perf_counter() - began < 1
    assert 4 <= caught.value.retry_after_s <= 9  # 84 of them take 4.2 s
    queue.cancel()
    await asyncio.gather(queue, return_exceptions=True)


async def test_many_large_images_do_not_block_other_images():
    """They become large when a loader reports it, are scored one at a time, and beyond their own bound they are refused."""
    held = Held("large")
    stages = FakeStages(
        lambda image, attempt: RetryAlone("large") if attempt == 1 and image.startswith("large") else held(image, 1)
    )
    busy = graph(stages, max_images_in_flight=64, max_large_images=8)
    flood = [asyncio.create_task(busy.score([f"large {n}"], options(), context())) for n in range(20)]
    await asyncio.sleep(0.05)
    assert sum(task.done() and task.exception().status == 429 for task in flood) == 12
    assert (busy.admission.ordinary.admitted, busy.admission.large.admitted) == (0, 8)
    assert await busy.score(["a"] * 64, options(), context(5)) == ["a"] * 64
    held.release.set()
    answers = await asyncio.gather(*flood, return_exceptions=True)
    assert sum(isinstance(answer, list) for answer in answers) == 8


async def test_a_large_image_takes_turns_of_its_own_in_the_stages():
    """So it does not delay ordinary images of the same caller."""
    stages = FakeStages(lambda image, attempt: RetryAlone("large") if attempt == 1 else image)
    assert await graph(stages).score(["a"], options(), RequestContext("test", time.time() + 10, "key")) == ["a"]
    assert [(task.queue_key, task.large) for task in stages.tasks] == [("key", False), ("key/large", True)]


@pytest.mark.parametrize("image", [b"photo", "https://example.com/1.jpg", "https://example.com/long.jpg"])
async def test_a_picture_is_admitted_as_a_large_image(image):
    """A URL after its body was fetched, so that a slow host delays no other large image."""
    release = asyncio.Event()

    async def held(image):
        await release.wait()
        return image

    stages = FakeStages(lambda image, _: image if image == "a" else held(image))
    stages.fetch.bodies = {"https://example.com/1.jpg": b"body"}
    drawn = graph(stages, max_large_images=1)
    first = asyncio.create_task(drawn.score([image], options(answer_format="png"), context()))
    await settle()
    assert [lane.admitted for lane in drawn.admission.lanes] == [0, 0, 1]
    assert [task.large for task in stages.tasks] == [True]
    with pytest.raises(Overloaded):
        await drawn.score([b"photo"], options(answer_format="png"), context())
    assert await drawn.score(["a"], options(), context(5)) == ["a"]
    release.set()
    await first


async def test_an_image_of_a_lost_replica_is_still_asked_whether_it_is_large():
    """Retried, or fetched by its own call, it is not large before it has a place in that lane."""
    stages = FakeStages(lambda image, attempt: (ray_exceptions.ActorDiedError(), RetryAlone("large"), image)[attempt - 1])
    assert await graph(stages).score(["a"], options(), context()) == ["a"]
    assert [task.large for task in stages.tasks] == [False, False, True]


async def test_a_key_holds_at_most_its_share():
    """Half of the room where there are several keys; with one key, or none, all of it."""
    held = Held("slow")
    busy = graph(FakeStages(held), max_images_in_flight=100, max_images_per_request=10)
    flood = [asyncio.create_task(busy.score(["slow"] * 10, options(), of("loud"))) for _ in range(10)]
    await settle()
    assert sum(task.done() for task in flood) == 5
    with pytest.raises(Overloaded):
        busy.admission.check_room(busy.admission.ordinary, 1, "loud")
    quiet = asyncio.create_task(busy.score(["slow"] * 10, options(), of("quiet")))
    alone = [asyncio.create_task(busy.score(["slow"] * 10, options(), of(""))) for _ in range(4)]
    await settle()
    assert not any(task.done() for task in [quiet, *alone])
    held.release.set()
    await asyncio.gather(quiet, *alone, *flood, return_exceptions=True)


async def test_keys_take_turns_in_calls():
    """An image of a second key does not wait for all that a first one sent before it."""
    held = Held("busy")
    stages = FakeStages(held)
    busy = graph(stages, groups={"max_in_flight": 1, "max_images": 2})
    requests = [
        busy.score(images, options(), of(key))
        for images, key in ((["busy"], "loud"), (["loud"] * 6, "loud"), (["quiet"], "quiet"))
    ]
    running = [asyncio.create_task(request) for request in requests]
    await settle()
    held.release.set()
    await asyncio.gather(*running)
    assert stages.groups.index(["quiet"]) <= 2


async def test_slow_urls_of_one_key_do_not_block_those_of_another():
    """One key has at most its share of the URLs that are worked on at a time."""
    held = Held("https://slow")
    busy = graph(FakeStages(held), max_urls_in_flight=4)
    flood = [asyncio.create_task(busy.score(["https://slow.com/1.jpg"] * 64, options(), of("loud"))) for _ in range(2)]
    await settle()
    assert await busy.score(["https://fast.com/1.jpg"], options(), of("quiet", 2)) == ["https://fast.com/1.jpg"]
    held.release.set()
    await asyncio.gather(*flood)


async def test_keys_take_turns_with_large_images():
    """They are scored one at a time: a second key waits for the one that is being scored, not for all of the first key."""
    done, held = [], Held("loud", "quiet")

    async def score(image, attempt):
        await held(image, attempt)
        done.append(image)
        return image

    stages = FakeStages(lambda image, attempt: score(image, attempt) if attempt == 2 else RetryAlone("large"))
    busy = graph(stages)
    flood = [asyncio.create_task(busy.score([f"loud {n}"], options(), of("loud"))) for n in range(4)]
    await asyncio.sleep(0.05)
    quiet = asyncio.create_task(busy.score(["quiet"], options(), of("quiet")))
    await asyncio.sleep(0.05)
    held.release.set()
    await asyncio.gather(*flood, quiet)
    assert done.index("quiet") == 1


async def test_retry_after_follows_what_is_ahead():
    """Never sooner than the setting, at most half as long again, and not all at the same time."""
    admission = graph(FakeStages(None)).admission
    assert {admission.refusal().retry_after_s for _ in range(200)} == {4, 5, 6}
    assert {admission.refusal(9.5).retry_after_s for _ in range(500)} == set(range(10, 16))
    assert max(admission.refusal(1e9).retry_after_s for _ in range(100)) <= 90


FATES = (
    *(None,) * 12,
    ImageError("bad"),
    EngineLost("lost"),
    DeadlineExceeded("late"),
    RetryAlone("large"),
    RetryAlone("large"),
    ray_exceptions.ActorDiedError(),
    BackPressureError(1, "full"),
    asyncio.CancelledError(),
    "hangs",
)


async def any_traffic(seed):
    """Requests of several keys to stages that fail in all ways; each request may be cancelled at any moment.

    Returns:
        How they ended.
    """
    chance = random.Random(seed)

    async def fate(image):
        await asyncio.sleep(chance.choice([0, 0.001, 0.05, 0.3, 2, 8]))
        fate = chance.choice(FATES)
        await asyncio.sleep(1e6 if fate == "hangs" else 0)
        return image if fate is None else fate

    async def ends(request):
        try:
            await request
        except (ServiceError, asyncio.CancelledError) as error:
            return type(error)
        return list

    async def body(url):
        await asyncio.sleep(chance.choice([0, 0.5, 20]))
        return chance.choice([url, b"body", FetchError("gone")])

    stages = FakeStages(lambda image, _: fate(image))
    stages.fetch._body = body
    busy = graph(stages, max_images_in_flight=64, max_urls=64, max_urls_in_flight=chance.choice([1, 4]), max_large_images=4)
    requests = []
    for _ in range(60):
        images = [chance.choice([b"photo", "https://example.com/1.jpg"]) for _ in range(chance.choice([0, 1, 1, 2, 8, 20]))]
        wanted = options(isolate=chance.random() < 0.3, answer_format=chance.choice(["json", "json", "png"]))
        who = of(chance.choice(["", "a", "b"]), chance.choice([-1, 0.05, 1, 10, 30]))
        requests.append(asyncio.create_task(ends(busy.score(images, wanted, who))))
        if chance.random() < 0.3:
            asyncio.get_running_loop().call_later(chance.choice([0, 0.01, 0.06, 0.5, 3]), chance.choice(requests).cancel)
        await asyncio.sleep(chance.choice([0, 0.001, 0.02, 0.3, 2]))
    ended = set(await asyncio.gather(*requests))

    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [lane.admitted for lane in busy.admission.lanes] == [0, 0, 0]
    stages._behave = stages.fetch._body = lambda image, *_: image  # all is well again
    stages.fetch = FakeFetch()
    again = [busy.score([image] * 64, options(), context(1e4)) for image in ("a", "https://example.com/1.jpg")]
    again += [busy.score(["a"], options(answer_format="png"), of(key, 1e4)) for key in "abcd"]
    async with asyncio.timeout(5):
        await asyncio.gather(*again)
    return ended


async def test_nothing_is_left_of_any_traffic():
    """No place, slot or call is lost, whatever happens to requests and stages."""
    ended = set().union(*[await any_traffic(seed) for seed in range(20)])
    assert ended >= {list, asyncio.CancelledError, DeadlineExceeded, ImageError, Overloaded}
