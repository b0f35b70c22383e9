"""Turns of a race summed up: one row a contestant, ratios to ours within rounds, the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Spread, as_number, as_range, ratios, spread_if_any, table
from loadtest.load.openloop import ABANDONED
from loadtest.load.scenarios import Result
from loadtest.load.traffic import OK

OURS = "ours"
MAX_FOREIGN_CORES = 0.15
"""Cores that other programs may use during an offline run. Above it a contestant's result says little: on two cores, a program that takes
one of them halves it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One contestant's results in one round; None if there is nothing.

    Args:
        name, round: whose, and which, from 0.
        server_per_s: highest rate that held the bound; 0.0 if none did.
        offline_per_s: images per second.
        errors: queries that failed, by outcome, in both scenarios.
        fault: why there are no results.
        details: the scenarios' own results.
    """

    name: str
    round: int
    server_per_s: float | None = None
    offline_per_s: float | None = None
    errors: dict[str, int] | None = None
    fault: str | None = None
    details: dict[str, Result] | None = None


def errors_of(details: dict[str, Result]) -> dict[str, int]:
    """Queries that failed, by outcome; what a lost trial never sent is no failure of the server's."""
    summaries = [trial for result in details.values() for trial in result.get("trials", [result.get("summary")])]
    counts: Counter[str] = Counter()
    for summary in summaries:
        counts.update({name: count for name, count in summary["outcomes"].items() if name not in (OK, ABANDONED)})
    return dict(counts)


def standings(turns: Sequence[Turn], ceilings: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """One row a contestant, ours first: spreads over the rounds, ratios to ours within rounds, share of the engine alone.

    Args:
        ceilings: images/s of the engine alone in each round, by batch size.
    """
    names = dict.fromkeys(turn.name for turn in sorted(turns, key=lambda turn: turn.name != OURS))
    return [_row(name, turns, ceilings) for name in names]


def _row(name: str, turns: Sequence[Turn], ceilings: Sequence[dict[str, float]]) -> dict[str, Any]:
    mine = [turn for turn in turns if turn.name == name]
    ours = {turn.round: turn for turn in turns if turn.name == OURS}
    row: dict[str, Any] = {"name": name}
    for key in ("server_per_s", "offline_per_s"):
        row[key] = spread_if_any([value for turn in mine if (value := getattr(turn, key)) is not None])
        pairs = [(getattr(ours[turn.round], key), getattr(turn, key)) for turn in mine if turn.round in ours]
        pairs = [(our, their) for our, their in pairs if our is not None and their]
        row[f"ours_by_{key}"] = ratios(*zip(*pairs, strict=True)) if pairs else None
    searches = [turn.details["server"] for turn in mine if turn.details and "server" in turn.details]
    offlines = [turn.details["offline"] for turn in mine if turn.details and "offline" in turn.details]
    return row | {
        "of_engine_alone": spread_if_any(
            [turn.offline_per_s / max(ceilings[turn.round].values()) for turn in mine if turn.offline_per_s is not None]
        ),
        "errors": dict(sum((Counter(turn.errors or {}) for turn in mine), Counter())),
        "faults": [turn.fault for turn in mine if turn.fault],
        "unfinished_searches": sum(not search["finished"] for search in searches),
        "disturbed": sum(offline.get("foreign_cores", 0.0) > MAX_FOREIGN_CORES for offline in offlines),
    }


def as_table(results: dict[str, Any]) -> str:
    """The results for people."""
    alone = ", ".join(f"batch {batch}: {rate:.1f} images/s" for batch, rate in results["engine_alone_images_per_s"].items())
    title = (
        f"{results['model']}, {results['objects_per_image']:.1f} objects per image; engine alone {alone}; "
        f"bound p99 {results['bound_p99_ms']:g} ms; {results['rounds']} rounds, median (lowest to highest)"
    )
    head = ["", "server/s", "ours / it", "offline images/s", "ours / it", "of the engine", "errors"]
    return f"{title}\n{table(head, map(_cells, results['standings']))}"


def _cells(row: dict[str, Any]) -> list[str]:
    ratio = {key: _median(row[f"ours_by_{key}"]) for key in ("server_per_s", "offline_per_s")}
    errors = ", ".join(f"{name} {count}" for name, count in row["errors"].items()) or "none"
    faults = "; did not start" if row["faults"] else ""
    unfinished = row["unfinished_searches"]
    doubt = f"; {unfinished} server rate{'s' if unfinished > 1 else ''} not confirmed: lower limit" if unfinished else ""
    if row["disturbed"]:
        doubt += f"; other programs used the machine in {row['disturbed']} offline run{'s' if row['disturbed'] > 1 else ''}"
    figures = [as_range(row["server_per_s"]), ratio["server_per_s"], as_range(row["offline_per_s"]), ratio["offline_per_s"]]
    return [row["name"], *figures, _median(row["of_engine_alone"]), f"{errors}{faults}{doubt}"]


def _median(found: Spread | None) -> str:
    return as_number(found.median if found else None)
