"""Compare two models, endpoints or saved results on a folder of photos, for example before switching, or in CI.

    python -m jobs.compare photos/ https://old.example.com http://127.0.0.1:8000 --key-env-a OLD_KEY --page compare.html
    python -m jobs.compare photos/ preds.jsonl runs/mine/final.safetensors --min-matched 0.95 --min-mask-iou 0.9

A side is a URL (also of an AzureML endpoint), a model (name or file, run in this process; MODEL@fp32 in that precision, mmdet:MODEL by
mmdet itself), or rows of jobs.batch_score (*.jsonl, *.csv).
Objects with the same label match by the IoU of their masks. "missed" are objects of only the first side, "new" of only the second;
"labels_alone" are labels of objects of only the first and of only the second.
Prints a table, then one line of JSON. Exit status: 1 if a threshold is missed, 2 for wrong arguments or input.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import html_page
from jobs.atomic_write import write_atomically
from jobs.command_line import check_outputs, cli_errors, count, fraction, progress, reason_of
from jobs.comparison.matching import Totals, agreement, match
from jobs.comparison.sides import PRECISIONS, Answer, Side, SideOptions, side_of
from jobs.photos import WHITE_LEVEL_HELP, PhotoError, read_photo_within, upright_size
from jobs.scoring.batch_inputs import Source
from jobs.scoring.service_client import key_from
from jobs.scoring.tables import InputsError
from pipeline.masks.draw import draw_overlay
from pipeline.types import SegmentedObject

PICTURE_SIDE_PX = 640


@dataclass(frozen=True, slots=True)
class Difference:
    """One photo to show.

    Args:
        agreement: 0..1, see `agreement`.
        name, photo: its name below the folder, and the file.
        objects: of both sides.
        note: the difference, as text.
    """

    agreement: float
    name: str
    photo: Path
    objects: tuple[Sequence[SegmentedObject], Sequence[SegmentedObject]]
    note: str


@cli_errors("jobs.compare", InputsError, status=2)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = _parser().parse_args(argv)
    check_outputs({"--page": args.page}, dict(zip(("the first side", "the second side"), args.sides, strict=True)))
    options = SideOptions(args.score_threshold, args.engine, args.precision, args.mask_format, args.white_level)
    if args.page:  # hours before it is written
        args.page.parent.mkdir(parents=True, exist_ok=True)
    sides = [side_of(text, options, key) for text, key in zip(args.sides, (args.key_env_a, args.key_env_b), strict=True)]
    totals, worst = compare(args.photos, sides[0], sides[1], args.iou_threshold, args.most)
    summary = totals.summary()
    failed = missed_thresholds(summary, args)
    for name, value in summary.items():
        print(f"{name:>21}  {value}")
    for fault in [*itertools.chain(*totals.faults), *failed][:20]:
        print(f"jobs.compare: {fault}", file=sys.stderr)
    print(json.dumps(summary), flush=True)
    if args.page:
        write_atomically(args.page, page(tuple(args.sides), summary, failed, worst))
    return 1 if failed else 0


def compare(folder: str, first: Side, second: Side, iou_threshold: float, limit: int) -> tuple[Totals, list[Difference]]:
    """Score every photo with both sides.

    Args:
        folder: of the photos.
        iou_threshold: smallest mask IoU of a match.
        limit: number of photos to return, those with the lowest agreement.
    Returns:
        The counts, and these photos, lowest agreement first.
    """
    totals = Totals()
    worst: list[tuple[float, int, Difference]] = []
    photos = Source(folder)
    for number, photo in enumerate(progress(photos)):
        if not isinstance(photo.image, Path):
            raise InputsError(f"{folder}: a folder of photos is compared, not a table")
        answers = _answer_of(first, photo.file_name, photo.image), _answer_of(second, photo.file_name, photo.image)
        difference = _count(totals, photo.file_name, photo.image, answers, iou_threshold)
        if difference is not None:
            heapq.heappush(worst, (-difference.agreement, number, difference))
            if len(worst) > limit:
                heapq.heappop(worst)
    if photos.skipped:
        print(f"jobs.compare: {photos.left_out()}", file=sys.stderr)
    return totals, [difference for *_, difference in sorted(worst, key=lambda item: item[2].agreement)]


def _answer_of(side: Side, name: str, photo: Path) -> Answer:
    try:
        return side(name, photo)
    except OSError as error:
        return Answer([], fault=f"The file cannot be read: {reason_of(error)}")


def _count(totals: Totals, name: str, photo: Path, answers: tuple[Answer, Answer], iou_threshold: float) -> Difference | None:
    totals.photos += 1
    for answer, times, faults in zip(answers, totals.took_ms, totals.faults, strict=True):
        if answer.fault:
            faults.append(f"{name}: {answer.fault}")
        elif answer.took_ms is not None:
            times.append(answer.took_ms)
    if any(answer.fault for answer in answers):
        return None
    try:
        width, height = upright_size(photo)
    except PhotoError as error:
        totals.faults[0].append(str(error))
        return None
    if fault := _of_another_size(answers, (height, width)):
        totals.faults[fault[0]].append(f"{name}: {fault[1]}")
        return None
    first, second = (answer.objects for answer in answers)
    pairs = match(first, second, (height, width), iou_threshold)
    totals.compared += 1
    totals.first, totals.second = totals.first + len(first), totals.second + len(second)
    for labels, objects in zip(totals.labels, (first, second), strict=True):
        labels.update(item.label for item in objects)
    totals.pairs += pairs
    alike = agreement(len(first), len(second), pairs)
    note = f"agreement {alike:.3f}: {len(first)} | {len(second)} objects, {len(pairs)} matched"
    return Difference(alike, name, photo, (first, second), note)


def _of_another_size(answers: tuple[Answer, Answer], size_hw: tuple[int, int]) -> tuple[int, str] | None:
    """The side whose masks have another size than the photo, and a message: no object would match."""
    for side, answer in enumerate(answers):
        for item in answer.objects:
            if item.rle is not None and (size := item.rle["size"]) != list(size_hw):
                return side, f"its masks have the size {size} (height, width), the photo has {list(size_hw)}"
    return None


def missed_thresholds(summary: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """The missed thresholds, as text. Without any objects, none is missed; if no objects match, those of matched objects are."""
    failed = []
    if not summary["compared"]:
        failed.append("not one photo has an answer of both sides")
    if sum(summary["faults"]) > args.max_faults:
        failed.append(f"answers missing: {sum(summary['faults'])}; the limit is {args.max_faults} (--max-faults)")
    if any(summary["objects"]) and not summary["matched"]:
        failed += [
            f"no objects match, so {option} cannot be met"
            for option, value in (("--min-mask-iou", args.min_mask_iou), ("--max-score-shift", args.max_score_shift))
            if value is not None
        ]
    for name, least in (("matched_share", args.min_matched), ("mask_iou", args.min_mask_iou)):
        if least is not None and summary[name] is not None and summary[name] < least:
            failed.append(f"{name} is {summary[name]}, below {least:g}")
    shift = summary["absolute_score_shift"]
    if args.max_score_shift is not None and shift is not None and shift > args.max_score_shift:
        failed.append(f"absolute_score_shift is {shift}, above {args.max_score_shift:g}")
    return failed


def page(names: tuple[str, str], summary: dict[str, Any], failed: Sequence[str], worst: Sequence[Difference]) -> str:
    """The page.

    Args:
        names: of the two sides.
        summary: of `Totals.summary`.
        failed: missed thresholds, as text.
        worst: the photos to show, in order.
    """
    parts = [
        html_page.text_block("\n".join(failed) or "All thresholds are met."),
        html_page.table((), summary.items()),
        html_page.heading("Largest differences"),
    ]
    return html_page.page(" | ".join(names), [*parts, *(part for difference in worst for part in _shown(difference, names))])


def _shown(difference: Difference, names: tuple[str, str]) -> Iterator[str]:
    yield html_page.paragraph(f"{difference.name} {difference.note}")
    try:
        picture = read_photo_within(difference.photo, PICTURE_SIDE_PX)
    except PhotoError as error:  # it was there when it was compared
        yield html_page.text_block(str(error))
        return
    drawn = zip(names, difference.objects, strict=True)
    yield html_page.gallery(html_page.picture(draw_overlay(picture, objects), name) for name, objects in drawn)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.compare", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("photos", help="folder of photos")
    add(
        "sides",
        nargs=2,
        metavar="SIDE",
        help="URL; model: a name or a file, @PRECISION behind it, mmdet: before it; or rows of jobs.batch_score",
    )
    add("--key-env-a", type=key_from, metavar="NAME", help="environment variable that holds the first URL's key")
    add("--key-env-b", type=key_from, metavar="NAME", help="environment variable that holds the second URL's key")
    add("--score-threshold", type=fraction, default=0.3, help="compare objects with a score above this (default: %(default)s)")
    add("--iou-threshold", type=fraction, default=0.5, help="smallest mask IoU of a match (default: %(default)s)")
    add("--engine", choices=["auto", "openvino", "torch"], default="auto", help="of models (default: %(default)s)")
    add("--precision", choices=PRECISIONS, default="auto", help="of models (default: %(default)s)")
    add(
        "--mask-format",
        choices=["polygon", "rle"],
        default="polygon",
        help="of models and of this service's URLs; rle: exact masks (default: %(default)s)",
    )
    add("--white-level", type=count, help=f"of models: {WHITE_LEVEL_HELP}")
    add("--min-matched", type=fraction, help="smallest share of the objects of both sides that must match")
    add("--min-mask-iou", type=fraction, help="smallest mean mask IoU of matched objects")
    add("--max-score-shift", type=fraction, help="largest mean absolute score difference of matched objects")
    add("--max-faults", type=int, default=0, help="most missing answers, of both sides together (default: %(default)s)")
    add("--page", type=Path, help="write an HTML page with the photos that differ most")
    add("--most", type=count, default=20, help="most photos on the page (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
