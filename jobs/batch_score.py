"""Score many photos with a running service, as AzureML's batch endpoint does: one JSON line for each photo, as it is done.

    python -m jobs.batch_score photos/ --url http://127.0.0.1:8000 --output preds.jsonl
    python -m jobs.batch_score photos.csv --url https://scoring.example.com --key-env SCORING_KEY --output preds.jsonl

    photos ─▶ groups ─▶ CONCURRENCY threads: read, ask (jobs.scoring.service_client waits and asks again) ─▶ preds.jsonl

A line is `{"row_number_per_file", "preds", "file_name"}`; `preds` is the image's object of the contract, `{"boxes": [...]}`, with
`"error": {"code", "message"}` where the photo is bad. Lines come in the order in which photos get done. Stopped and started again, it
goes on: names in the output are skipped. Delete a line to have its photo scored again. Memory does not grow with the batch.
The exit status is 1 where it was stopped or a request failed for good: such photos have no line, so that the same command tries them again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jobs.command_line import cli_errors, count
from jobs.scoring.batch_inputs import InputsError, Photo, photos_of
from jobs.scoring.service_client import Answer, ServiceClient, ServiceFault, Unavailable, base_url, is_of_the_moment, key_from

REST_OF_BODY_BYTES = 10_000
"""Of a request's body, what is not images."""
LINE_START = b'{"row_number_per_file": '
MAX_FAILED_REQUESTS = 20
"""A service that fails so many requests for good gets no more of them."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a group: a line for each photo that has an answer, and why the others have none."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Scorer:
    """Scores groups of photos; may be used from several threads.

    Args:
        client: of the service.
        params: of every request.
        max_body_bytes: largest request body; a group that is larger is sent in parts.
    """

    def __init__(self, client: ServiceClient, params: dict[str, Any], max_body_bytes: int) -> None:
        self._client, self._params, self._room = client, params | {"on_error": "isolate"}, max_body_bytes - REST_OF_BODY_BYTES

    def score(self, photos: Sequence[Photo]) -> Done:
        """Read and score a group; raises only Unavailable."""
        done, asked = Done(), []
        for photo in photos:
            try:
                asked.append((photo, photo.text()))
            except OSError as error:
                done.lines.append(_line(photo, _bad("image_not_readable", f"The file cannot be read: {error.strerror}.")))
        for part in self._parts(asked):
            self._score_part(part, done)
        return done

    def _parts(self, asked: list[tuple[Photo, str]]) -> Iterator[list[tuple[Photo, str]]]:
        """As few requests as keep below the largest body."""
        part: list[tuple[Photo, str]] = []
        for photo, text in asked:
            if part and sum(len(other) for _, other in part) + len(text) > self._room:
                yield part
                part = []
            part.append((photo, text))
        if part:
            yield part

    def _score_part(self, part: list[tuple[Photo, str]], done: Done) -> None:
        if len(part[0][1]) > self._room:  # then it is alone
            done.lines.append(
                _line(part[0][0], _bad("image_too_large", "The image is larger than the service's largest request."))
            )
            return
        try:
            answers = self._client.score([text for _, text in part], self._params)
        except Unavailable:
            raise
        except ServiceFault as error:
            done.faults.append(f"{part[0][0].name} and {len(part) - 1} more: {error}")
            return
        for (photo, _), answer in zip(part, answers, strict=True):
            if is_of_the_moment(answer):
                done.faults.append(f"{photo.name}: {answer['error']['message']}")
            else:
                done.lines.append(_line(photo, answer))


def _line(photo: Photo, answer: Answer) -> dict[str, Any]:
    return {"row_number_per_file": photo.row, "preds": answer, "file_name": photo.name}


def _bad(code: str, message: str) -> Answer:
    return {"boxes": [], "error": {"code": code, "message": message}}


def done_before(output: Path) -> set[str]:
    """Names that an earlier run has written; a last line that it could not finish is cut off.

    Raises:
        InputsError: it is no file, or holds something else.
    """
    if not output.exists():
        return set()
    if not output.is_file():  # of /dev/full, say, the first line never ends
        raise InputsError(f"{output} is no file: name one for --output, new or of an earlier run")
    names, whole = set(), 0
    with output.open("rb+") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                if not line.startswith(LINE_START[: len(line)]):
                    raise ValueError
                if not line.endswith(b"\n"):
                    break
                names.add(json.loads(line)["file_name"])
            except (ValueError, KeyError) as error:
                raise InputsError(f"{output}, line {number}: not a line of this job; take another --output") from error
            whole += len(line)
        lines.truncate(whole)
    return names


def score_all(scorer: Scorer, photos: Sequence[Photo], group: int, concurrency: int) -> Iterator[Done]:
    """Score groups side by side and give each as it gets done; never more than twice `concurrency` of them exist."""
    groups = (photos[first : first + group] for first in range(0, len(photos), group))
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
    finally:
        pool.shutdown(cancel_futures=True)


def _results(done: Iterable[Future[Done]]) -> Iterator[Done]:
    """Results first, then the fault of one that has none, so that no answer is lost."""
    for future in sorted(done, key=lambda future: future.exception() is not None):
        yield future.result()


@cli_errors("jobs.batch_score")
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 all done, 1 stopped or requests failed for good, 2 wrong arguments or input."""
    args = _parser().parse_args(argv)
    client = ServiceClient(args.url, args.key_env, args.deadline_s, args.concurrency)
    params = {} if args.score_threshold is None else {"score_threshold": args.score_threshold}
    try:
        photos = photos_of(args.source)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        names = done_before(args.output)
        limits = client.limits()
    except (InputsError, OSError) as error:
        print(f"jobs.batch_score: {error}", file=sys.stderr)
        return 2
    except ServiceFault as error:
        print(f"jobs.batch_score: {error}", file=sys.stderr)
        return 1
    scorer = Scorer(client, params, int(limits.get("max_body_mb", 32) * 1e6))
    group = min(args.images_per_request, limits.get("max_images_per_request", args.images_per_request))
    left = [photo for photo in photos if photo.name not in names]
    return _run(score_all(scorer, left, group, args.concurrency), len(photos), len(photos) - len(left), args.output)


def _run(results: Iterator[Done], total: int, skipped: int, output: Path) -> int:
    """Write every line as it comes, count, and say how it went."""
    began, scored, errors, failed = time.perf_counter(), 0, 0, 0
    with output.open("a", encoding="utf-8") as file, tqdm(total=total, initial=skipped, unit="photo") as bar:
        try:
            for done in results:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in done.lines)
                file.flush()
                bad = sum("error" in line["preds"] for line in done.lines)
                scored, errors, failed = scored + len(done.lines) - bad, errors + bad, failed + len(done.faults)
                bar.update(len(done.lines))
                for fault in done.faults:
                    bar.write(f"jobs.batch_score: {fault}", file=sys.stderr)
                if failed >= MAX_FAILED_REQUESTS:
                    raise Unavailable(f"{failed} requests failed for good")
        except Unavailable as error:
            failed += 1
            bar.write(f"jobs.batch_score: stopped: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            failed += 1
            bar.write("jobs.batch_score: interrupted; the same command goes on from here", file=sys.stderr)
        finally:
            results.close()  # type: ignore[attr-defined]  # a generator: waits for what is in flight, starts nothing more
    took_s = time.perf_counter() - began
    before = f"{skipped} done before" + (" (another --output scores them again)" if skipped else "")
    print(
        f"{scored} scored, {errors} errors, {before}, {total - skipped - scored - errors} not done; "
        f"{(scored + errors) / took_s:.1f} images/s"
    )
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.batch_score",
        description=(__doc__ or "").splitlines()[0],
        epilog="The exit status is 0 where every photo has its line, though those of bad photos hold an error instead of objects; "
        "1 where it was stopped or a request failed for good: the same command tries again what has no line; "
        "2 where arguments or input are wrong.",
    )
    add = parser.add_argument
    add("source", type=Path, help="folder of photos, or CSV with a column `image` of paths or URLs (the service fetches those)")
    add("--url", type=base_url, required=True, help="a running service, e.g. http://127.0.0.1:8000")
    add("--key-env", type=key_from, metavar="NAME", help="environment variable that holds the key")
    add(
        "--output",
        type=Path,
        required=True,
        help="JSON lines; what is in it already is not scored again; missing folders are made",
    )
    add("--concurrency", type=count, default=8, help="requests in flight at once (default: %(default)s)")
    add("--images-per-request", type=count, default=8, help="(default: %(default)s)")
    add("--score-threshold", type=float, help="keep scores above this, 0..1 (default: the service's)")
    add("--deadline-s", type=float, default=30.0, help="of a request, seconds (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
