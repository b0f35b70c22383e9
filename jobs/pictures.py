"""Draw pictures of results: rows of `jobs.batch_score`, or predictions beside annotations, worst photo first.

    python -m jobs.pictures photos/ --preds preds.jsonl --output pictures/
    python -m jobs.pictures photos/ --annotations val.json --output pictures/
    python -m jobs.pictures photos/ --annotations val.json --results results.json --output pictures/

    preds.jsonl (jobs.batch_score) ────────────────────────────────┐
    annotations ───────────────────────────────────────────────────┼─▶ Sheet: photo, panels ─▶ pictures/00001-<photo>.jpg
    annotations, results.json (jobs.evaluate --save-results) ──────┘   two panels: left annotated, right found

"Worst" is the lowest F1 of a photo's masks at IoU 0.5, matched as in `jobs.evaluation.metrics_azureml`, of predictions above the threshold.
A photo that cannot be read is reported on stderr and skipped; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from jobs.annotations.datasets import AnnotationsError, read_annotations
from jobs.annotations.report import ANNOTATIONS_HELP, STRICT_HELP
from jobs.atomic_write import write_atomically
from jobs.command_line import cli_errors, count, fraction, progress
from jobs.evaluation.results_file import read_results
from jobs.photos import WHITE_LEVEL_HELP, PhotoError
from jobs.scoring.tables import InputsError
from jobs.sheets import Sheet, sheets_of_annotations, sheets_of_comparison, sheets_of_predictions

LONGEST_SIDE_PX, JPEG_QUALITY = 1280, 90
LONGEST_NAME = 200  # bytes of a photo's name in that of its picture; file systems allow 255 for all of it
_UNUSUAL = re.compile(r"[^\w.-]+")  # characters that some file systems or shells cannot handle


def write_pictures(
    sheets: Sequence[Sheet], folder: Path, longest_side_px: int, white_level: int | None = None
) -> Iterator[str | None]:
    """Write each sheet as <number>-<photo>.jpg; yields for each its error, or None."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, sheet in enumerate(sheets, start=1):
        try:
            picture = sheet.draw(longest_side_px, white_level)
        except PhotoError as error:
            yield str(error)
            continue
        name = _UNUSUAL.sub("_", Path(sheet.name).with_suffix(".jpg").as_posix())
        path = folder / f"{number:05d}-{name.encode()[-LONGEST_NAME:].decode(errors='ignore')}"
        encoded = io.BytesIO()  # to a file itself, Pillow's JPEG writer does not see when a disk takes only a part
        picture.save(encoded, "JPEG", quality=JPEG_QUALITY)
        write_atomically(path, encoded.getvalue())
        yield None


@cli_errors("jobs.pictures", AnnotationsError, InputsError, status=2)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 all drawn, 1 some photos could not be read, 2 wrong arguments or input."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.results and not args.annotations:
        parser.error("--results are drawn beside --annotations; name those, too")
    (sheets, left_out), unread = _sheets(args), 0
    written = write_pictures(sheets, args.output, args.longest_side_px, args.white_level)
    for fault in progress(written, "picture", len(sheets)):
        if fault:
            unread += 1
            tqdm.write(f"jobs.pictures: {fault}", file=sys.stderr)
    more = f", {left_out} rows are errors, URLs, base64 or of no photo in {args.photos}" if left_out else ""
    if others := sum(1 for _ in args.output.glob("[0-9]*-*.jpg")) - (len(sheets) - unread):
        more += f"; {others} other pictures are in there, such as of an earlier run"
    print(f"{args.output}: {len(sheets) - unread} of {len(sheets)} pictures written, {unread} photos not readable{more}")
    return 1 if unread else 0


def _sheets(args: argparse.Namespace) -> tuple[list[Sheet], int]:
    if args.preds:
        return sheets_of_predictions(args.photos, args.preds, args.most)
    with tempfile.TemporaryDirectory() as scratch:
        annotations = read_annotations(args.annotations, Path(args.photos), Path(scratch), strict=args.strict)
        print(annotations.summary, flush=True)
        if args.results:
            results = read_results(args.results, annotations.document())
            return sheets_of_comparison(annotations, results, args.score_threshold, args.most), 0
        return sheets_of_annotations(annotations, args.most), 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.pictures", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("photos", help="folder of the photos; with --preds: the input of jobs.batch_score, which may be a table")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--preds", type=Path, help="output of jobs.batch_score")
    source.add_argument("--annotations", type=Path, help=ANNOTATIONS_HELP)
    add("--strict", action="store_true", help=f"with --annotations: {STRICT_HELP}")
    add("--results", type=Path, help="with --annotations: COCO results JSON, such as that of jobs.evaluate --save-results")
    add("--score-threshold", type=fraction, default=0.3, help="with --results: leave out lower scores (default: %(default)s)")
    add("--most", type=count, metavar="N", help="draw only the first N photos, with --results the N worst (default: all)")
    add("--longest-side-px", type=count, default=LONGEST_SIDE_PX, help="scale larger photos down (default: %(default)s)")
    add("--white-level", type=count, help=WHITE_LEVEL_HELP)
    add("--output", type=Path, required=True, help="folder for the pictures; missing folders are made")
    return parser


if __name__ == "__main__":
    sys.exit(main())
