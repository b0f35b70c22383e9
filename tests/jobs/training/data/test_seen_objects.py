"""What training sees is what was read, or it does not run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jobs.annotations.report import AnnotationsError
from jobs.training.data.seen_objects import PATIENCE_STEPS, SeenObjectsHook


class Photos(list):
    """Stands in for mmdet's data set."""

    def get_data_info(self, index):
        """One photo of 1,000 x 500 with these boxes."""
        instances = [{"bbox": box, "ignore_flag": crowd} for box, crowd in self[index]]
        return {"img_path": f"{index}.jpg", "width": 1000, "height": 500, "instances": instances}


def runner_of(*photos, warned=None):
    logger = SimpleNamespace(warning=(warned if warned is not None else []).append)
    return SimpleNamespace(train_dataloader=SimpleNamespace(dataset=Photos(photos)), logger=logger)


LARGE, SMALL, CROWD = ([10, 10, 200, 200], 0), ([10, 10, 200, 14], 0), ([0, 0, 500, 500], 1)


def test_objects_that_mmdet_leaves_out_are_an_error():
    """Crowds do not count."""
    SeenObjectsHook(2, 640).before_train(runner_of([LARGE], [LARGE, CROWD]))
    with pytest.raises(AnnotationsError, match="holds 2 objects of the 3 in the annotations"):
        SeenObjectsHook(3, 640).before_train(runner_of([LARGE], [LARGE, CROWD]))


def test_objects_too_small_for_the_samples_are_reported():
    """4 px of a photo of 1,000 px are 0.8 px of one scaled to 200."""
    warned = []
    SeenObjectsHook(2, 200).before_train(runner_of([LARGE], [SMALL], warned=warned))
    assert warned[0].startswith(
        "1 of 2 objects are smaller than a pixel in the training samples and never seen, first: one in 1.jpg at x 10"
    )
    with pytest.raises(AnnotationsError, match="all 1 objects are smaller than a pixel"):
        SeenObjectsHook(1, 200).before_train(runner_of([SMALL]))
    SeenObjectsHook(1, 300).before_train(runner_of([SMALL]))


@pytest.mark.parametrize("first_at", [1, PATIENCE_STEPS, None])
def test_a_run_without_any_object_ends(first_at):
    hook = SeenObjectsHook(1, 640)

    def step(number):
        sample = SimpleNamespace(gt_instances=[1] if number == first_at else [])
        hook.after_train_iter(runner_of(), number, {"data_samples": [sample]})

    for number in range(1, PATIENCE_STEPS):
        step(number)
    if first_at is None:
        with pytest.raises(AnnotationsError, match=f"the first {PATIENCE_STEPS} training steps contain no object"):
            step(PATIENCE_STEPS)
    else:
        step(PATIENCE_STEPS)
        step(PATIENCE_STEPS + 1)
