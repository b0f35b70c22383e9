"""The sides of a comparison: a service, a model in this process, or saved rows of jobs.batch_score."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pybase64

from jobs.command_line import CommandFault
from jobs.scoring.batch_output import read_rows
from jobs.scoring.service_client import ServiceClient, ServiceFault, base_url
from pipeline.errors import RequestError
from pipeline.images.decode import DecodeLimits
from pipeline.images.load import load_image
from pipeline.inference.engine import EngineOptions, load_engine
from pipeline.masks.encode import instances_to_objects, objects_from_dict
from pipeline.model.zoo import locate
from pipeline.types import DetectOptions, OutlineOptions, SegmentedObject

SAVED_SUFFIXES = frozenset({".jsonl", ".csv"})


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one side for one photo.

    Args:
        objects: those above the threshold, best first; empty if there is a fault.
        took_ms: time from the file's bytes to the answer, milliseconds; None for saved rows.
        fault: the error; empty if there is none.
    """

    objects: Sequence[SegmentedObject]
    took_ms: float | None = None
    fault: str = ""


Side = Callable[[str, Path], Answer]
"""Answers for a photo, by its name below the folder and its file."""


def side_of(text: str, score_threshold: float, engine: str, precision: str, key: str | None) -> Side:
    """The side for a command-line argument.

    Args:
        text: a URL, a file of saved rows (*.jsonl, *.csv), or a model: its name or its file.
        score_threshold: use objects with a score above this.
        engine, precision: of a model.
        key: of a URL.
    Raises:
        CommandFault, SetupError: the argument is none of these.
    """
    if "://" in text:
        return _of_service(ServiceClient(base_url(text.removesuffix("/").removesuffix("/score")), key), score_threshold)
    if Path(text).suffix.lower() in SAVED_SUFFIXES:
        return _of_rows(Path(text), score_threshold)
    return _of_model(text, EngineOptions(engine, precision), score_threshold)  # type: ignore[arg-type]  # argparse has checked


def _of_service(client: ServiceClient, score_threshold: float) -> Side:
    def score(_: str, photo: Path) -> Answer:
        image = pybase64.b64encode(photo.read_bytes()).decode()
        began = time.perf_counter()
        try:
            (answer,) = client.score([image], {"score_threshold": score_threshold})
        except ServiceFault as error:
            return Answer([], fault=str(error))
        return _answer(answer, score_threshold, (time.perf_counter() - began) * 1e3)

    return score


def _of_rows(path: Path, score_threshold: float) -> Side:
    rows = {row.file_name: row.preds for row in read_rows(path)}

    def score(name: str, _: Path) -> Answer:
        return _answer(rows[name], score_threshold, None) if name in rows else Answer([], fault=f"{path} has no row for it")

    return score


def _of_model(model: str, options: EngineOptions, score_threshold: float) -> Side:
    engine = load_engine(locate(model, setting="model"), options)
    detect, outline = DetectOptions(score_threshold), OutlineOptions(decimals=None)

    def score(_: str, photo: Path) -> Answer:
        data = photo.read_bytes()
        began = time.perf_counter()
        try:
            loaded = load_image(data, DecodeLimits(), engine.info.input_size)
        except RequestError as error:
            return Answer([], fault=error.message)
        objects = instances_to_objects(engine.detect([loaded], [detect])[0], engine.info.classes, outline)
        return Answer(objects, (time.perf_counter() - began) * 1e3)

    return score


def _answer(preds: dict[str, Any], score_threshold: float, took_ms: float | None) -> Answer:
    if "error" in preds:
        return Answer([], took_ms, str(preds["error"].get("message")))
    try:
        objects = [item for item in objects_from_dict(preds) if item.score > score_threshold]
    except (KeyError, TypeError) as error:
        raise CommandFault(f"an answer does not follow the contract: {error!r}") from error
    return Answer(sorted(objects, key=lambda item: -item.score), took_ms)
