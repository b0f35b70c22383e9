"""Validation during training with the serving code: its decoding, its post-processing, and RLE.

photo ─▶ load_image ─▶ RawNetwork (a copy of the averaged weights) ─▶ PostProcessor ─▶ mask_logits_to_rle ─▶ coco_metrics

mmdet's own validation makes a mask of the photo's size for each of 100 objects: 1.2 GB for 12 megapixels.
"""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import copy
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.registry import LOOPS
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from torch import nn

from jobs.annotations.datasets import Annotations
from jobs.annotations.report import AnnotationsError
from jobs.evaluation.coco_results import CocoResults, coco_result
from jobs.evaluation.metrics_coco import STATISTICS, coco_metrics
from jobs.photos import LIMITS
from jobs.training.network.layers import unwrapped
from pipeline.errors import RequestError
from pipeline.images.letterbox import pad_batch
from pipeline.images.load import load_image
from pipeline.inference.postprocess import PostProcessor
from pipeline.masks.rle import mask_logits_to_rle
from pipeline.model.rtmdet import RawNetwork
from pipeline.types import DetectOptions, LoadedImage

OPTIONS = DetectOptions(score_threshold=0.05)
"""Score threshold of mmdet's test settings: AP also needs low scores."""


@LOOPS.register_module()
class ServedValLoop(BaseLoop):
    """mmengine validation loop with the service's decoding and post-processing, and COCO metrics.

    Args:
        runner: of the training.
        dataloader: {"coco_json", "images", "threads"}: annotations whose category ids are 1, 2, ... in the order of the class channels,
            the folder of their photos, and how many threads decode them.
        evaluator: not used; mmengine passes it.
        input_size: side of the square network input, pixels.
        batch_size: photos in one pass of the network.
        white_level: as in DecodeLimits.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: dict[str, Any],
        evaluator: Any,  # noqa: ARG002
        input_size: int,
        batch_size: int,
        white_level: int | None = None,
    ) -> None:
        self._runner = runner
        self._truth = json.loads(Path(dataloader["coco_json"]).read_text())
        self._images, self._threads = Path(dataloader["images"]), dataloader["threads"]
        self._input_size, self._batch_size, self._white_level = input_size, batch_size, white_level
        self.dataloader = self._truth["images"]

    def run(self) -> dict[str, Any]:
        """Validate the network that mmengine's hooks have set: the averaged weights, if there are any."""
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        shared: list[dict[str, Any]] = [{}]
        if is_main_process():
            photos = self._images, self._input_size, self._batch_size, self._threads, self._white_level
            shared = [flat(coco_metrics(self._truth, predict(unwrapped(self.runner.model), self._truth, *photos)))]
        broadcast_object_list(shared)  # to the other processes, so that all choose the same best and stop together
        (measured,) = shared
        self.runner.call_hook("after_val_epoch", metrics=measured)
        self.runner.call_hook("after_val")
        return measured


def check_defined(metric: str, val: Annotations) -> None:
    """Raise AnnotationsError if the validation set has no object that a metric is of, such as no small one: no checkpoint would be best."""
    kind, _, name = metric.partition("_")
    if coco_metrics(val.document(), [])[kind][name] is None:
        raise AnnotationsError(f"--best-metric {metric}: {val.report.file} has no objects that it is of; name another one.")


def flat(metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{"mask": {"ap": 0.1, "per_label": {"cat": 0.2}}} to {"mask_ap": 0.1, "mask_ap/cat": 0.2}."""
    numbers = {f"{kind}_{name}": metrics[kind][name] for kind in ("box", "mask") for name in STATISTICS}
    labels = {f"{kind}_ap/{label}": ap for kind in ("box", "mask") for label, ap in metrics[kind]["per_label"].items()}
    return numbers | labels


def predict(
    detector: nn.Module,
    truth: dict[str, Any],
    images: Path,
    input_size: int,
    batch_size: int = 1,
    threads: int = 1,
    white_level: int | None = None,
) -> CocoResults:
    """COCO results of a network in training, which is not modified.

    Args:
        detector: mmdet's RTMDet-Ins, on any device.
        truth: COCO document that names the photos; its category ids are 1, 2, ... in the order of the class channels.
        images: folder of the photos.
        input_size: side of the square network input, pixels.
        batch_size: photos in one pass.
        threads: number of threads that decode.
        white_level: as in DecodeLimits.
    Raises:
        AnnotationsError: a photo cannot be read.
    """
    device = next(detector.parameters()).device
    network = RawNetwork(copy.deepcopy(detector).eval(), input_size)
    limits = replace(LIMITS, white_level=white_level)
    find = PostProcessor((input_size, input_size), network.kernel_branch, device)

    def load(photo: dict[str, Any]) -> LoadedImage:
        try:
            return load_image((images / photo["file_name"]).read_bytes(), limits, input_size)
        except (RequestError, OSError) as error:
            raise AnnotationsError(f"{photo['file_name']}: {error}") from error

    results: CocoResults = []
    loaded = zip(truth["images"], ahead(load, truth["images"], threads), strict=True)
    while batch := list(islice(loaded, batch_size)):
        pixels = torch.from_numpy(pad_batch([image for _, image in batch], input_size)).to(device)
        with torch.inference_mode():
            outputs = network(pixels)
            found = find(outputs, [image.letterbox for _, image in batch], [OPTIONS] * len(batch))
        for (photo, _), instances in zip(batch, found, strict=True):
            results += [
                coco_result(photo["id"], int(label) + 1, box, score, mask_logits_to_rle(logits, instances.letterbox))
                for box, label, score, logits in zip(
                    instances.boxes, instances.labels, instances.scores, instances.mask_logits, strict=True
                )
            ]
    return results


def ahead(load: Callable[[Any], Any], items: Iterable[Any], threads: int) -> Iterator[Any]:
    """Yield the results of `load` in order, computed ahead by threads; at most two per thread wait."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Any]] = deque()
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)
