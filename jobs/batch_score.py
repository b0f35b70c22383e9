"""Score many photos with a running service, as AzureML's batch endpoint does. Writes one row per photo.

    python -m jobs.batch_score photos/ --url http://127.0.0.1:8000 --output preds.jsonl
    python -m jobs.batch_score photos.csv --url https://scoring.example.com --key-env SCORING_KEY --output predictions.csv

    photos ─▶ groups ─▶ CONCURRENCY threads: read, send (jobs.scoring.service_client waits and retries) ─▶ rows

A row has `row_number_per_file`, `preds` and `file_name` (formats: jobs.scoring.rows); `preds` is the image's object of the
contract, `{"boxes": [...]}`, with `"error": {"code", "message"}` if the photo is bad. For a folder, `file_name` is the photo's path and
the number is 0; for a table, they are its name and the row, from 0. Rows are written in the order in which photos are finished. When
started again, it skips photos that are in the output. Delete a line to score its photo again. Memory does not grow with the batch.
Exit status 1: it was stopped, a request failed after all retries or the storage failed while a photo was read (such photos have no row,
so the same command tries them again), or no photo could be scored.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jobs.command_line import LINE_EVERY_S, amount, cli_errors, count, fraction, reason_of
from jobs.scoring.batch_inputs import Photo, Source
from jobs.scoring.batch_output import BatchOutput, facts_before
from jobs.scoring.rows import FORMATS, PARQUET, format_of
from jobs.scoring.scorer import Done, Scorer, score_all
from jobs.scoring.service_client import ServiceClient, ServiceFault, Unavailable, base_url, key_from
from jobs.scoring.tables import MAX_FAULTS, InputsError


@cli_errors("jobs.batch_score", InputsError)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 all done, 1 stopped or requests failed, 2 wrong arguments or input."""
    args = _parser().parse_args(argv)
    client = ServiceClient(args.url, args.key_env, args.deadline_s, args.concurrency)
    params = {} if args.score_threshold is None else {"score_threshold": args.score_threshold}
    try:
        source = Source(args.source)
        photos, tables = source.count(facts_before(args.output))
        output = BatchOutput(args.output, format_of(args.output, args.format))
    except (InputsError, OSError) as error:
        return _failed(error, 2)
    if source.skipped:
        print(f"jobs.batch_score: {source.left_out()}", file=sys.stderr)
    with closing(output):
        try:
            info = client.info()
            source_and_params = {"params": params, "source": str(source.path.resolve())}
            note = output.made_by({"service": args.url} | _made_by(info, params) | source_and_params | tables)
        except InputsError as error:
            return _failed(error, 2)
        except ServiceFault as error:
            return _failed(error, 1)
        if note:
            print(f"jobs.batch_score: {note}", file=sys.stderr)
        return _run(args, client, info.get("limits") or {}, params, source, photos, output)


def _made_by(info: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """What determines the rows of a service, of its `/info`; what an older service does not say is left out."""
    facts = {key: info.get(key) for key in ("model", "precision")}
    facts |= {key: info[key] for key in ("weights", "exif_orientation") if key in info}
    settings = ("max_detections",) if "score_threshold" in params else ("max_detections", "default_score_threshold")
    limits = info.get("limits") or {}
    return facts | {key: limits[key] for key in settings if key in limits}


def _failed(error: Exception, status: int) -> int:
    print(f"jobs.batch_score: {reason_of(error)}", file=sys.stderr)
    return status


def _run(
    args: argparse.Namespace,
    client: ServiceClient,
    limits: dict[str, Any],
    params: dict[str, Any],
    source: Source,
    photos: int,
    output: BatchOutput,
) -> int:
    """Score the photos without a row, write the rows, count them, and print a summary."""
    scorer = Scorer(client, params, int(limits.get("max_body_mb", 32) * 1e6))
    group = min(args.images_per_request, limits.get("max_images_per_request", args.images_per_request))
    tally = Tally(photos)
    left = (photo for photo in source if not tally.is_done_before(photo, output))
    results = score_all(scorer, left, group, args.concurrency)
    with tqdm(total=photos, unit="photo", mininterval=0.1 if sys.stderr.isatty() else LINE_EVERY_S) as bar:
        try:
            for done in results:
                output.write(done.rows)
                tally.add(done)
                bar.update(tally.done - bar.n)
                for fault in done.faults:
                    bar.write(f"jobs.batch_score: {fault}", file=sys.stderr)
                if tally.failed >= MAX_FAULTS:
                    raise Unavailable(f"{tally.failed} requests or reads of photos failed; the same command tries them again")
        except Unavailable as error:
            tally.failed += 1
            bar.write(f"jobs.batch_score: stopped: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            tally.failed += 1
            bar.write("jobs.batch_score: interrupted; the same command continues from here", file=sys.stderr)
        finally:
            results.close()  # type: ignore[attr-defined]  # a generator: waits for what is in flight, starts nothing more
        bar.update(tally.done - bar.n)
    print(tally.summary())
    problem = tally.problem()
    for message in filter(None, (tally.note(), problem)):
        print(f"jobs.batch_score: {message}", file=sys.stderr)
    return 1 if tally.failed or problem else 0


@dataclass(slots=True)
class Tally:
    """Counts of one run.

    Args:
        total: photos of the source.
    """

    total: int
    before: int = 0
    changed: int = 0
    first_changed: str = ""
    scored: int = 0
    errors: int = 0
    failed: int = 0
    first_error: str = ""
    began: float = field(default_factory=time.perf_counter)

    @property
    def done(self) -> int:
        """Number of photos that have a row."""
        return self.before + self.scored + self.errors

    def is_done_before(self, photo: Photo, output: BatchOutput) -> bool:
        """Whether an earlier run has scored a photo; counts it then, and whether the file was changed since."""
        if not output.has(photo.key):
            return False
        self.before += 1
        if photo.changed_after(output.written_at):
            self.changed += 1
            self.first_changed = self.first_changed or str(photo)
        return True

    def add(self, done: Done) -> None:
        """Count a group."""
        bad = [row for row in done.rows if "error" in row.preds]
        self.scored, self.errors = self.scored + len(done.rows) - len(bad), self.errors + len(bad)
        self.failed += len(done.faults)
        if bad and not self.first_error:
            self.first_error = f"{bad[0].file_name}: {bad[0].preds['error']['message']}"

    def summary(self) -> str:
        """One line."""
        before = f"{self.before} done before" + (" (another --output scores them again)" if self.before else "")
        rate = (self.scored + self.errors) / (time.perf_counter() - self.began)
        return f"{self.scored} scored, {self.errors} errors, {before}, {self.total - self.done} not done; {rate:.1f} images/s"

    def note(self) -> str:
        """What to say of photos that were changed after they were scored; empty if there are none."""
        if not self.changed:
            return ""
        return (
            f"photos that were changed after their rows were written: {self.changed:,}, the first {self.first_changed}. Their rows are of "
            "what was there before: delete these lines, or take another --output, to score them again"
        )

    def problem(self) -> str:
        """A message if every row is an error, or photos have vanished; empty otherwise."""
        if self.errors and not (self.scored or self.before):
            return f"none of {self.errors} photos could be scored; first error: {self.first_error}"
        if self.done < self.total and not self.failed:
            return f"{self.total - self.done} of {self.total} photos are no longer there, so they have no row"
        return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.batch_score",
        description=(__doc__ or "").splitlines()[0],
        epilog="Exit status: 0 if every photo has a row (the row of a bad photo holds an error instead of objects); "
        "1 if it was stopped, a request failed after all retries or the storage failed while a photo was read (the same command tries "
        "these photos again) or no photo could be scored; "
        "2 for wrong arguments or input.",
    )
    add = parser.add_argument
    add(
        "source",
        help="folder of photos; CSV with a column `image`, or JSON lines with `image_url`, of base64, URLs (the service fetches those) or "
        "paths; a folder of such tables; MLTable",
    )
    add("--url", type=base_url, required=True, help="base URL of the service, such as http://127.0.0.1:8000")
    add("--key-env", type=key_from, metavar="NAME", help="environment variable that holds the key")
    add(
        "--output",
        type=Path,
        required=True,
        help="file for the rows; photos that are already in it are skipped; missing folders are created",
    )
    add(
        "--format",
        choices=[*FORMATS, PARQUET],
        help="jsonl; csv: AzureML's predictions.csv; boxes: rows of filename and boxes; parquet (default: by the suffix of --output)",
    )
    add("--concurrency", type=count, default=8, help="requests in flight at a time (default: %(default)s)")
    add("--images-per-request", type=count, default=8, help="(default: %(default)s)")
    add("--score-threshold", type=fraction, help="keep objects with a score above this, 0..1 (default: the service's)")
    add("--deadline-s", type=amount, default=30.0, help="time limit of a request, seconds (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
