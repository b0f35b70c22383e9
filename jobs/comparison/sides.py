"""The sides of a comparison: a service, a model in this process (our engine or mmdet), or saved rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pybase64

from jobs.annotations.report import AnnotationsError
from jobs.command_line import CommandFault
from jobs.photos import LIMITS
from jobs.scoring.rows import read_rows
from jobs.scoring.service_client import ServiceClient, ServiceFault, base_url
from pipeline.errors import RequestError
from pipeline.images.load import load_image
from pipeline.inference.create import load_engine
from pipeline.inference.engine import EngineOptions, Precision
from pipeline.masks.encode import instances_to_objects, objects_from_dict
from pipeline.model.checkpoints import load_checkpoint
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
"""Scores one photo: (its name below the folder, its file) → Answer. A photo that cannot be scored is a fault of its Answer.

Raises OSError if the file cannot be read.
"""

PRECISIONS: tuple[str, ...] = get_args(Precision)
MMDET = "mmdet:"


@dataclass(frozen=True, slots=True)
class SideOptions:
    """Options of both sides.

    Args:
        score_threshold: use objects with a score above this.
        engine, precision: of models that do not name their own.
        mask_format: `polygon`, the service's default, or `rle`, exact masks.
        white_level: of models, as in DecodeLimits.
    """

    score_threshold: float = 0.3
    engine: str = "auto"
    precision: str = "auto"
    mask_format: str = "polygon"
    white_level: int | None = None


def side_of(text: str, options: SideOptions, key: str | None = None) -> Side:
    """The side for a command-line argument.

    Args:
        text: a URL; a file of saved rows (*.jsonl, *.csv); or a model, its name or its file: followed by `@fp32` or another precision, or
            preceded by `mmdet:`, which runs mmdet's own test path.
        options: of both sides.
        key: of a URL.
    Raises:
        CommandFault, SetupError: the argument is none of these.
    """
    if "://" in text:
        return _of_service(ServiceClient(base_url(text.removesuffix("/").removesuffix("/score")), key), options)
    if Path(text).suffix.lower() in SAVED_SUFFIXES:
        return _of_rows(Path(text), options.score_threshold)
    if text.startswith(MMDET):
        return _of_mmdet(text.removeprefix(MMDET), options)
    model, at, precision = text.rpartition("@")
    if at and precision in PRECISIONS:
        text, options = model, replace(options, precision=precision)
    return _of_model(text, options)


def _of_service(client: ServiceClient, options: SideOptions) -> Side:
    params: dict[str, Any] = {"score_threshold": options.score_threshold}
    if options.mask_format != "polygon":  # AzureML's endpoint does not know the parameter
        params["mask_format"] = options.mask_format

    def score(_: str, photo: Path) -> Answer:
        image = pybase64.b64encode(photo.read_bytes()).decode()
        began = time.perf_counter()
        try:
            (answer,) = client.score([image], params)
        except ServiceFault as error:
            return Answer([], fault=str(error))
        return _answer(answer, options.score_threshold, (time.perf_counter() - began) * 1e3)

    return score


def _of_rows(path: Path, score_threshold: float) -> Side:
    rows: dict[str, dict[str, Any]] = {}
    for row in read_rows(path):
        if rows.setdefault(row.file_name, row.preds) is not row.preds:
            raise CommandFault(
                f"{path} has several rows of {row.file_name}, so there is no one answer to compare: give the rows of one batch of a folder"
            )

    def score(name: str, _: Path) -> Answer:
        return _answer(rows[name], score_threshold, None) if name in rows else Answer([], fault=f"{path} has no row for it")

    return score


def _of_model(model: str, options: SideOptions) -> Side:
    engine = load_engine(
        locate(model, setting="model"),
        EngineOptions(options.engine, options.precision),  # type: ignore[arg-type]  # argparse has checked
    )
    detect, outline = DetectOptions(options.score_threshold), OutlineOptions(decimals=None, mask_format=options.mask_format)
    limits = replace(LIMITS, white_level=options.white_level)

    def score(_: str, photo: Path) -> Answer:
        data = photo.read_bytes()
        began = time.perf_counter()
        try:
            loaded = load_image(data, limits, engine.info.input_size)
        except RequestError as error:
            return Answer([], fault=error.message)
        objects = instances_to_objects(engine.detect([loaded], [detect])[0], engine.info.classes, outline)
        return Answer(objects, (time.perf_counter() - began) * 1e3)

    return score


def _of_mmdet(model: str, options: SideOptions) -> Side:
    """mmdet's own transforms, network and post-processing in fp32; the masks as it makes them."""
    from jobs.evaluation.predictions import MmdetPredictor  # not at the top: it imports mmdet

    predictor = MmdetPredictor(load_checkpoint(locate(model, setting="model")), white_level=options.white_level)

    def score(_: str, photo: Path) -> Answer:
        began = time.perf_counter()
        try:
            found = predictor.predict(photo)
        except AnnotationsError as error:
            return Answer([], fault=str(error))
        took_ms = (time.perf_counter() - began) * 1e3
        return Answer([item for item in found if item.score > options.score_threshold], took_ms)

    return score


def _answer(preds: dict[str, Any], score_threshold: float, took_ms: float | None) -> Answer:
    if error := preds.get("error"):
        return Answer([], took_ms, str(error.get("message") if isinstance(error, dict) else error))
    try:
        objects = [item for item in objects_from_dict(preds) if item.score > score_threshold]
    except (KeyError, TypeError, ValueError) as error:
        raise CommandFault(f"an answer does not follow the contract: {error!r}") from error
    return Answer(sorted(objects, key=lambda item: -item.score), took_ms)
