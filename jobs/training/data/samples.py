"""Order and augmentation of training samples; both depend only on the run's seed and the number of the sample.

    NumberedSampler ─▶ (photo, number) ─▶ TrainingPhotos ─▶ sample
                                          seeds itself with (seed, number), loads, mosaic or single photo, crops, mirrors

So a resumed run continues with the next sample without replaying earlier ones, and the number of loader processes may
change.
"""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import contextlib
import io
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.datasets import CocoDataset
from mmdet.registry import DATA_SAMPLERS, DATASETS
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

MOSAIC_PHOTOS = 4


@DATA_SAMPLERS.register_module()
class NumberedSampler(Sampler[tuple[int, int]]):
    """Repeats all photos endlessly, each time in a new random order; several processes share one sequence.

    Args:
        dataset: a `TrainingPhotos`.
        seed: of the run.
        start: number of the first sample, for a resumed run.
        repeat_rare: repeat photos with classes that occur in less than this share of the photos; 0 repeats none.
    """

    def __init__(self, dataset: Any, seed: int, start: int = 0, repeat_rare: float = 0.0) -> None:
        self._seed, self._start, self._size = seed, start, len(dataset)
        self._repeats = repeat_factors(dataset.classes_by_photo(), repeat_rare)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Photo and number of the sample."""
        rank, processes = get_dist_info()
        numbered = ((photo, number) for number, photo in enumerate(self._photos()))
        return itertools.islice(numbered, self._start + rank, None, processes)

    def __len__(self) -> int:
        """Photos of the data set."""
        return self._size

    def _photos(self) -> Iterator[int]:
        random_ = torch.Generator().manual_seed(self._seed)
        while True:
            whole = self._repeats.floor()
            times = whole + (torch.rand(self._size, generator=random_) < self._repeats - whole)
            photos = torch.arange(self._size).repeat_interleave(times.long())
            yield from photos[torch.randperm(len(photos), generator=random_)].tolist()


def repeat_factors(classes_by_photo: Sequence[set[int]], rare: float) -> torch.Tensor:
    """Repeat factor of each photo, (photos,) float32, at least 1.

    Args:
        classes_by_photo: the classes in each photo.
        rare: classes in a smaller share of the photos are repeated.
    Source: Gupta et al. 2019, LVIS, appendix B: max(1, sqrt(rare / share)) of a photo's rarest class.
    """
    shown_in = Counter(label for classes in classes_by_photo for label in classes)
    share = {label: count / len(classes_by_photo) for label, count in shown_in.items()}
    factor = {label: max(1.0, math.sqrt(rare / part)) for label, part in share.items()}
    return torch.tensor([max((factor[label] for label in classes), default=1.0) for classes in classes_by_photo])


@DATASETS.register_module()
class TrainingPhotos(CocoDataset):
    """Data set whose samples are indexed by (photo, number), from `NumberedSampler`.

    Args:
        seed: of the run.
        mosaic: share of samples that are mosaics, 0..1.
        mosaic_samples: number of samples after which there are no more mosaics.
        transforms: lists of mmdet's transforms: `load` an annotated photo, then `mosaic` with three more or `single`, then `finish`.
    """

    def __init__(self, *, seed: int, mosaic: float, mosaic_samples: int, transforms: dict[str, Any], **coco: Any) -> None:
        super().__init__(pipeline=[], **coco)
        self._seed, self._mosaic, self._mosaic_samples, self._number = seed, mosaic, mosaic_samples, 0
        self._transforms = {name: Compose(steps) for name, steps in transforms.items()}

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        """One sample of this photo, also if no object is left in it."""
        index, self._number = place
        np.random.seed(np.random.SeedSequence((self._seed, self._number)).generate_state(4))
        random.seed(int(np.random.randint(2**31)))
        sample: dict[str, Any] = super().__getitem__(index)
        return sample

    def load_data_list(self) -> list[dict[str, Any]]:
        """mmdet's data list; suppresses pycocotools' output."""
        with contextlib.redirect_stdout(io.StringIO()):
            entries: list[dict[str, Any]] = super().load_data_list()
        return entries

    def prepare_data(self, index: int) -> Any:
        """One sample."""
        sample = self._load(index)
        if self._number >= self._mosaic_samples or np.random.random() >= self._mosaic:
            return self._transforms["finish"](self._transforms["single"](sample))
        others = np.random.randint(0, len(self), MOSAIC_PHOTOS - 1).tolist()
        sample["mix_results"] = [self._load(other) for other in others]
        return self._transforms["finish"](self._transforms["mosaic"](sample))

    def classes_by_photo(self) -> list[set[int]]:
        """The class channels of each photo's objects."""
        return [
            {found["bbox_label"] for found in self.get_data_info(index)["instances"] if not found["ignore_flag"]}
            for index in range(len(self))
        ]

    def _load(self, index: int) -> Any:
        return self._transforms["load"](self.get_data_info(index))
