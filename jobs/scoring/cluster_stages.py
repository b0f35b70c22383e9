"""The stages of a batch on a cluster, as map functions for Ray Data; each takes and returns a batch of rows.

    Load (CPUs): image ─▶ network pixels      Detect (GPUs, or CPUs): pixels ─▶ instances      Outline (CPUs): instances ─▶ preds
    jobs.scoring.cluster_through instead of all three (an application's handle): image ─▶ preds

Between them travel pickles of `LoadedImage` and `Instances`: scaled pixels and mask logits, never a full-size mask. What is wrong with a
photo travels in its place as a ServiceError and becomes its row; a NoRow leaves it without one, so that the same command tries it again.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import orjson
import ray
from numpy.typing import NDArray

from jobs.command_line import reason_of
from jobs.photos import LIMITS
from jobs.scoring.cluster_images import Images, NoRow
from jobs.scoring.cluster_inputs import FILE_NAME, ID, IMAGE, PREDS, ROW
from jobs.scoring.tables import COLUMNS, MAX_FAULTS
from jobs.scoring.tiles import Grid, Tiled, cut, join
from pipeline.errors import DecodersUnavailable, EngineLost, ServiceError, StageFailed
from pipeline.images.decoder_options import DecoderOptions
from pipeline.images.decoder_pool import DecoderPool
from pipeline.images.fetch import Fetcher, FetchPolicy
from pipeline.inference.create import load_engine
from pipeline.inference.engine import EngineOptions
from pipeline.inference.lost_device import end_process
from pipeline.masks.encode import instances_to_json_objects, join_json_objects, objects_to_json
from pipeline.types import DetectOptions, Instances, OutlineOptions

Batch = dict[str, NDArray[Any]]
WORK = "work"
FETCH_RETRIES = 6
"""Retries of a URL whose host is not there; with their pauses 6 s."""
logger = logging.getLogger(__name__)


class Counts(NamedTuple):
    """Photos with a row, those of them with an error, photos without a row, and the first message of each kind."""

    done: int = 0
    errors: int = 0
    faults: int = 0
    first_error: str = ""
    first_fault: str = ""


@ray.remote(num_cpus=0)
class Tally:
    """Counts the photos of the whole job.

    Args:
        error_threshold: most photos that may have an error; -1: any number.
    """

    def __init__(self, error_threshold: int) -> None:
        self._max_errors, self._counts = error_threshold, Counts()

    def add(self, done: int, errors: list[str], faults: list[str]) -> str:
        """Count a batch: the photos with a row, and messages; returns why the job must stop, empty if it need not."""
        before = self._counts
        first_error, first_fault = (before.first_error or "".join(errors[:1])), (before.first_fault or "".join(faults[:1]))
        totals = before.done + done, before.errors + len(errors), before.faults + len(faults)
        self._counts = Counts(*totals, first_error, first_fault)
        if 0 <= self._max_errors < self._counts.errors:
            return f"more photos failed than --error-threshold allows; one of them: {first_error}"
        if self._counts.faults >= MAX_FAULTS:
            return (
                f"{self._counts.faults} photos could not be read or scored now; the same command tries them again. {first_fault}"
            )
        return ""

    def counts(self) -> Counts:
        """The counts of all batches so far."""
        return self._counts


class TooManyErrors(RuntimeError):
    """More photos failed than allowed."""


class Load:
    """Stage: image to network pixels.

    Args:
        input_size: side of the network's square input, pixels.
        grid: how photos are cut into tiles; None: not at all.
        white_level: as in DecodeLimits.
    """

    def __init__(self, input_size: int, grid: Grid | None = None, white_level: int | None = None) -> None:
        limits = replace(LIMITS, white_level=white_level)
        policy = FetchPolicy(max_bytes=limits.max_bytes, retries=FETCH_RETRIES)
        self._images, self._policy, self._grid = Images(policy), policy, grid
        self._decoders = DecoderPool(DecoderOptions(limits, grid.side_px if grid else input_size, 10.0), 1)

    def __call__(self, batch: Batch) -> Batch:
        batch = as_listed(batch)
        return replaced(batch, IMAGE, WORK, asyncio.run(self._all(batch[IMAGE].tolist())))

    async def _all(self, images: list[Any]) -> list[bytes]:
        fetcher = Fetcher(self._policy)

        async def one(image: Any) -> bytes:
            try:
                data = await self._images.read(fetcher, image)
                loaded = await asyncio.to_thread(self._decoders.load, data)
                return pickle.dumps(cut(loaded, self._grid) if self._grid else loaded, protocol=5)
            except (DecodersUnavailable, MemoryError, OSError) as error:  # of this machine
                return pickle.dumps(NoRow(f"a photo cannot be decoded on this node: {reason_of(error)}"))
            except ServiceError as error:
                return pickle.dumps(error)
            except Exception as error:
                return pickle.dumps(_unexpected(error))

        try:
            return list(await asyncio.gather(*map(one, images)))
        finally:
            await fetcher.aclose()


class Detect:
    """Stage: network pixels to instances, in batches.

    Args:
        model: name or path.
        options: of the engine.
        detect: which instances are kept.
    """

    def __init__(self, model: str, options: EngineOptions, detect: DetectOptions) -> None:
        self._engine, self._detect = load_engine(model, options), detect

    def __call__(self, batch: Batch) -> Batch:
        work = [pickle.loads(item) for item in batch[WORK].tolist()]
        good = {index: item for index, item in enumerate(work) if not isinstance(item, ServiceError)}
        images: list[Any] = [image for item in good.values() for image in (item.parts if isinstance(item, Tiled) else [item])]
        try:
            found = iter(self._engine.detect(images, [self._detect] * len(images)))
        except EngineLost as error:  # Ray Data gives this batch to another worker; an exception would stop the whole job
            end_process(error, logger)
        for index, item in good.items():
            tiled = isinstance(item, Tiled)
            work[index] = replace(item, parts=tuple(islice(found, len(item.parts)))) if tiled else next(found)
        return replaced(batch, WORK, WORK, [pickle.dumps(item, protocol=5) for item in work])


class Outline:
    """Stage: instances to the contract's objects as JSON; counts photos.

    Args:
        classes: names by label index.
        outline: how masks are encoded.
        tally: of the job.
    """

    def __init__(self, classes: tuple[str, ...], outline: OutlineOptions, tally: Any) -> None:
        self._classes, self._outline, self._tally = classes, outline, tally

    def __call__(self, batch: Batch) -> Batch:
        return with_preds(batch, WORK, [self._json(pickle.loads(item)) for item in batch[WORK].tolist()], self._tally)

    def _json(self, item: Instances | Tiled | ServiceError) -> bytes | ServiceError:
        try:
            if isinstance(item, ServiceError):
                return item
            if isinstance(item, Tiled):
                return objects_to_json(join(item, self._classes, self._outline))
            return join_json_objects(instances_to_json_objects(item, self._classes, self._outline))
        except Exception as error:
            return _unexpected(error)


def _unexpected(error: Exception) -> ServiceError:
    """The error of a photo on which a stage fails: as an exception, it would stop the whole job at this photo, each time."""
    logger.error("a stage failed on a photo", exc_info=error)
    return StageFailed(f"A stage of the job failed on this photo: {type(error).__name__}: {error}")


def with_preds(batch: Batch, old: str, answers: Sequence[bytes | ServiceError], tally: Any) -> Batch:
    """The batch with the column `old` replaced by `preds`, and without the photos that get no row; counts them.

    Args:
        answers: for each photo its JSON, or its error.
    Raises:
        TooManyErrors: more photos failed than allowed.
    """
    kept = [index for index, answer in enumerate(answers) if not isinstance(answer, NoRow)]
    errors = [answer.message for answer in answers if isinstance(answer, ServiceError) and not isinstance(answer, NoRow)]
    faults = [answer.message for answer in answers if isinstance(answer, NoRow)]
    count(tally, len(kept), errors, faults)
    rows = {name: cells[kept] for name, cells in batch.items()}
    return replaced(rows, old, PREDS, [_preds(answers[index]) for index in kept])


def count(tally: Any, done: int, errors: list[str], faults: list[str]) -> None:
    """Count a batch, see `Tally.add`.

    Raises:
        TooManyErrors: more photos failed than allowed.
    """
    if reason := ray.get(tally.add.remote(done, errors, faults)):
        raise TooManyErrors(reason)


def _preds(answer: bytes | ServiceError) -> str:
    if isinstance(answer, ServiceError):
        message = answer.message.encode(errors="backslashreplace").decode()  # it may hold a file's name that is not UTF-8
        answer = orjson.dumps({"boxes": [], "error": {"code": answer.code, "message": message}})
    return answer.decode()


def as_listed(batch: Batch) -> Batch:
    """The columns of the list of photos; rows of a Parquet source have `id` and `image` or `image_url`."""
    if FILE_NAME in batch:
        return batch
    ids, column = batch[ID], next(name for name in COLUMNS if name in batch)
    return {ID: ids, FILE_NAME: ids.astype(str), ROW: np.zeros(len(ids), np.int64), IMAGE: batch[column]}


def replaced(batch: Batch, old: str, new: str, values: list[Any]) -> Batch:
    """The batch with the column `old` replaced by the column `new`, with one value per row."""
    column = np.empty(len(values), object)
    column[:] = values
    return {**{name: cells for name, cells in batch.items() if name != old}, new: column}
