"""Sends groups of photos to a service, concurrently; a bad photo does not affect the others.

photos ─▶ groups ─▶ CONCURRENCY threads: read, send (jobs.scoring.service_client waits and retries) ─▶ Done: rows, faults
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from jobs.command_line import reason_of
from jobs.scoring.batch_inputs import Photo
from jobs.scoring.rows import Row
from jobs.scoring.service_client import Answer, ServiceClient, ServiceFault, Unavailable, is_transient
from jobs.scoring.tables import Unreadable, is_of_the_photo

REST_OF_BODY_BYTES = 10_000
"""Size of a request body without its images, at most."""


@dataclass(frozen=True, slots=True)
class Done:
    """The outcome of a group: a row for each photo with an answer, and the errors of the others."""

    rows: list[Row] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Scorer:
    """Scores groups of photos; may be used from several threads.

    Args:
        client: of the service.
        params: of every request.
        max_body_bytes: largest request body; a larger group is sent in several requests.
    """

    def __init__(self, client: ServiceClient, params: dict[str, Any], max_body_bytes: int) -> None:
        self._client, self._params, self._room = client, params | {"on_error": "isolate"}, max_body_bytes - REST_OF_BODY_BYTES

    def score(self, photos: Sequence[Photo]) -> Done:
        """Read and score a group; raises only Unavailable."""
        done, read = Done(), []
        for photo in photos:
            try:
                read.append((photo, photo.text(self._room)))
            except OSError as error:
                if is_of_the_photo(error):
                    done.rows.append(
                        _row(photo, _error_answer("image_not_readable", f"The file cannot be read: {error.strerror}."))
                    )
                else:
                    done.faults.append(f"{photo}: {reason_of(error)}")
            except Unreadable as error:
                done.rows.append(_row(photo, _error_answer("image_not_readable", str(error))))
        for part in self._parts(read):
            self._score_part(part, done)
        return done

    def stop(self) -> None:
        """Try no request again."""
        self._client.stop()

    def _parts(self, read: list[tuple[Photo, str]]) -> Iterator[list[tuple[Photo, str]]]:
        """Split a group into as few requests as the largest body allows."""
        part: list[tuple[Photo, str]] = []
        for photo, text in read:
            if part and sum(len(other) for _, other in part) + len(text) > self._room:
                yield part
                part = []
            part.append((photo, text))
        if part:
            yield part

    def _score_part(self, part: list[tuple[Photo, str]], done: Done) -> None:
        if len(part[0][1]) > self._room:  # then it is alone
            done.rows.append(
                _row(part[0][0], _error_answer("image_too_large", "The image is larger than the service's largest request."))
            )
            return
        try:
            answers = self._client.score([text for _, text in part], self._params)
        except Unavailable:
            raise
        except ServiceFault as error:
            done.faults.append(f"{part[0][0]} and {len(part) - 1} more: {error}")
            return
        for (photo, _), answer in zip(part, answers, strict=True):
            if is_transient(answer):
                done.faults.append(f"{photo}: {answer['error']['message']}")
            else:
                done.rows.append(_row(photo, answer))


def _row(photo: Photo, answer: Answer) -> Row:
    return Row(photo.row, answer, photo.file_name)


def _error_answer(code: str, message: str) -> Answer:
    return {"boxes": [], "error": {"code": code, "message": message}}


def score_all(scorer: Scorer, photos: Iterable[Photo], group: int, concurrency: int) -> Iterator[Done]:
    """Score groups concurrently and yield each when it is done; at most twice `concurrency` groups are in memory.

    After Ctrl-C or `close`, waits for the requests in flight, which are not tried again, and drops their answers.
    """
    photos = iter(photos)
    groups = iter(lambda: list(itertools.islice(photos, group)), [])
    pool, in_flight = ThreadPoolExecutor(concurrency), set[Future[Done]]()
    try:
        for photos_of_group in groups:
            in_flight.add(pool.submit(scorer.score, photos_of_group))
            if len(in_flight) == 2 * concurrency:
                done, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
                yield from _results(done)
        while in_flight:
            done, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
            yield from _results(done)
    except BaseException as stopped:
        scorer.stop()
        if isinstance(stopped, KeyboardInterrupt):
            tqdm.write("interrupted: waiting for the requests in flight", file=sys.stderr)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _results(done: Iterable[Future[Done]]) -> Iterator[Done]:
    """Yield all results, then raise the error of a failed one, so that no answer is lost."""
    for future in sorted(done, key=lambda future: future.exception() is not None):
        yield future.result()
