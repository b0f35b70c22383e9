"""A model as mmdet's own files: a `.pth` and a configuration for `init_detector`, mmdet's tests and mmdeploy."""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import inspect
import io
from pathlib import Path

import torch
from mmengine.config import Config

from jobs.atomic_write import write_atomically
from jobs.command_line import CommandFault
from pipeline.model.checkpoints import Checkpoint
from pipeline.model.rtmdet_nano import COORDINATE_REACH_STRIDES, RTMDetInsDepthwiseHead
from pipeline.model.spec import ModelSpec, mmdet_config

HEAD_MODULE = "rtmdet_ins_nano_head"
HEAD_HEADER = f'''"""Head of RTMDet-Ins-nano, which mmdet does not have: this file's folder belongs into PYTHONPATH."""

from typing import Any

import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmdet.models.dense_heads import RTMDetInsSepBNHead
from mmdet.registry import MODELS
from torch import Tensor, nn

COORDINATE_REACH_STRIDES = {COORDINATE_REACH_STRIDES}


'''


def write_mmdet(checkpoint: Checkpoint, weights: Path) -> list[Path]:
    """Write `weights` (.pth) and, beside it, the configuration of the same name (.py); for nano also the module of its head.

    Returns:
        The files that were written.
    Raises:
        CommandFault: there is a file of the configuration's name, and no weights that an earlier export wrote with it.
    """
    spec, config_path = checkpoint.spec, weights.with_suffix(".py")
    if config_path.exists() and not weights.exists():
        raise CommandFault(f"{config_path} is there already, and mmdet's configuration would replace it: take another name.")
    config = config_of(spec)
    meta = {"dataset_meta": {"classes": spec.classes}, "cfg": config.pretty_text}
    saved = io.BytesIO()  # to a full disk, torch.save ends with a RuntimeError
    torch.save({"state_dict": checkpoint.state_dict, "meta": meta}, saved)
    write_atomically(weights, saved.getvalue())
    write_atomically(config_path, config.pretty_text)
    written = [weights, config_path]
    if spec.config["bbox_head"]["type"] == RTMDetInsDepthwiseHead.__name__:
        head = weights.with_name(f"{HEAD_MODULE}.py")
        source = inspect.getsource(RTMDetInsDepthwiseHead).replace("register_module()", "register_module(force=True)")
        write_atomically(head, HEAD_HEADER + source)
        written.append(head)
    return written


def config_of(spec: ModelSpec) -> Config:
    """What mmdet needs to build, run and test the model; the data set's place is for the reader to fill in."""
    config = mmdet_config(spec)
    classes = {"classes": spec.classes}
    dataset = {"type": "CocoDataset", "data_root": "data/", "ann_file": "val.json", "data_prefix": {"img": "photos/"}}
    config.test_dataloader = {
        "batch_size": 1,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": dataset | {"metainfo": classes, "test_mode": True, "pipeline": config.test_pipeline},
    }
    config.test_evaluator = {"type": "CocoMetric", "ann_file": "data/val.json", "metric": ["bbox", "segm"]}
    config.test_cfg = {"type": "TestLoop"}
    if spec.config["bbox_head"]["type"] == RTMDetInsDepthwiseHead.__name__:
        config.custom_imports = {"imports": [HEAD_MODULE], "allow_failed_imports": False}
    return config
