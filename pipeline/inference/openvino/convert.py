"""Converts a checkpoint to an OpenVINO model, and caches the result in a folder for the next start.

model file ─▶ mmdet network ─▶ RawNetwork ─▶ OpenVINO IR for a precision   (seconds: mmdet's import and the tracing)
     └──────────▶ <cache>/openvino/<key>/{network.xml, network.bin, head.safetensors, sha256}   (a fraction of a second)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import openvino as ov
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pipeline import model
from pipeline.errors import ConfigurationError, EngineUnavailable
from pipeline.inference.devices import cpu_has_matrix_unit
from pipeline.model.kernel_branch import KernelBranch

if TYPE_CHECKING:
    from pipeline.model.checkpoints import Checkpoint

logger = logging.getLogger(__name__)

CORE = ov.Core()
"""OpenVINO in this process, for its whole life.

Each core's CPU plugin gives the thread a stack for signals (openvinotoolkit/openvino#11894) and takes it back when it ends, whatever came
between. With two, the thread can be left with one that is gone, and the next signal ends the process.
"""

_MODEL_SOURCES = [Path(model.__file__).with_name(f"{name}.py") for name in ("rtmdet", "kernel_branch", "fusion", "rtmdet_nano")]
_SOURCES = (*_MODEL_SOURCES, Path(__file__).with_name("packed.py"), Path(__file__))
"""Source files that determine the converted network; the cache key contains their hash."""


_HASHED = ("network.xml", "network.bin", "head.safetensors")
_UNREADABLE = (OSError, RuntimeError, SafetensorError, ValueError, LookupError, TypeError)
"""What reading a cached network raises if a file is damaged, missing or another user's."""


@dataclass(frozen=True, slots=True)
class ConvertedNetwork:
    """A network that OpenVINO can compile, and the parts that the post-processing needs.

    Args:
        name, classes, input_size: of the model; pixels.
        kernel_branch: what the post-processing runs.
        precision: `fp32`, `bf16` or `fp16`, to compute in.
        model: input (B, H, W, 3) uint8, all three open, outputs in the order of RawOutputs.
    """

    name: str
    classes: tuple[str, ...]
    input_size: int
    kernel_branch: KernelBranch
    precision: str
    model: ov.Model

    def for_one_image(self, input_hw: tuple[int, int]) -> ov.Model:
        """A copy for one image of this height and width, whole strides of the network and at most `input_size`.

        Shapes are closed before compiling: OpenVINO 2026.4 copies at every layout change where the batch is open, and crashes on
        open height and width.
        """
        model = self.model.clone()
        model.reshape({model.input(0): ov.PartialShape([1, *input_hw, 3])})
        return model


def choose_precision(asked: str) -> str:
    """The precision to compute in; `auto` is bf16 on CPUs that have it.

    Raises:
        EngineUnavailable: the CPU cannot compute in the precision that was asked for.
    """
    able = CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if asked == "auto":
        if "BF16" in able:
            return "bf16"
        logger.warning("this CPU has no bf16 instructions: the openvino engine computes in fp32, at about half the speed")
        return "fp32"
    if asked != "fp32" and asked.upper() not in able:
        raise EngineUnavailable(
            f"detector.precision: this CPU has no {asked} instructions ({', '.join(able)}); use auto or fp32."
        )
    return asked


def convert(checkpoint: Checkpoint, precision: str) -> ConvertedNetwork:
    """Build mmdet's network and convert it.

    Args:
        precision: as in EngineOptions.
    Raises:
        EngineUnavailable: the CPU cannot compute in it.
    """
    from pipeline.inference.openvino.packed import normalise_rows, pack_layers
    from pipeline.model.rtmdet import RawNetwork  # mmdet takes seconds to import: only where it is needed

    precision = choose_precision(precision)
    spec = checkpoint.spec
    network = RawNetwork(checkpoint.network(), spec.input_size)
    normalise_rows(network, whole_means=precision == "bf16")
    if _packs(precision):
        pack_layers(network)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing announces its deprecation and every shape it bakes in
        pixels = torch.zeros(1, spec.input_size, spec.input_size, 3, dtype=torch.uint8)
        model = ov.convert_model(network, example_input=pixels)
    model.reshape({model.input(0): ov.PartialShape([-1, -1, -1, 3])})
    branch = network.kernel_branch.convert(torch.bfloat16 if precision == "bf16" else torch.float32)
    return ConvertedNetwork(spec.name, spec.classes, spec.input_size, branch, precision, model)


def convert_cached(path: Path, precision: str, cache_dir: Path) -> ConvertedNetwork:
    """The converted network of a model file, from the cache if it contains it. An entry that cannot be read is replaced.

    Args:
        path: `.pth` or `.safetensors`.
        precision: as in EngineOptions.
        cache_dir: folder for downloads and converted networks; several processes may share it.
    Raises:
        ConfigurationError: the network must be converted, and `cache_dir` cannot be written.
        EngineUnavailable: the CPU cannot compute in this precision.
    """
    precision = choose_precision(precision)
    folder = cache_dir / "openvino" / _key(path, precision)
    if is_damaged := folder.exists():
        try:
            return _read(folder)
        except _UNREADABLE as error:
            logger.warning("%s cannot be read, so the network is converted anew: %s", folder, _in_one_line(error))
    from pipeline.model.checkpoints import load_checkpoint

    draft = _make_draft(folder)
    old = Path(f"{draft}.old")
    try:
        converted = convert(load_checkpoint(path), precision)
        _write(converted, draft)
        with suppress(OSError):  # another process was first, or the entry is another user's
            if is_damaged:
                folder.rename(old)
            draft.rename(folder)
            _sync(folder.parent)
    finally:
        for leftover in (draft, old):
            shutil.rmtree(leftover, ignore_errors=True)
    try:
        return _read(folder)
    except _UNREADABLE as error:
        logger.warning("%s cannot be replaced, so each start converts the network. Delete it: %s", folder, _in_one_line(error))
        return converted


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _key(path: Path, precision: str) -> str:
    digest = hashlib.sha256(path.read_bytes())
    for source in _SOURCES:
        digest.update(source.read_bytes())
    digest.update(f"{ov.__version__} {torch.__version__}".encode())
    packed = "-packed" if _packs(precision) else ""
    return f"{path.stem}-{precision}{packed}-{digest.hexdigest()[:16]}"


def _packs(precision: str) -> bool:
    """Whether packed layers pay on this CPU; another one may share the cache folder."""
    return precision == "bf16" and cpu_has_matrix_unit()


def _make_draft(folder: Path) -> Path:
    """A temporary folder, to be renamed when it is complete, so that readers never see a partial result."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    except OSError as error:
        raise ConfigurationError(
            f"model.cache_dir: the converted network cannot be written to {folder.parent} ({error}); choose a folder that can be written"
        ) from error


def _write(converted: ConvertedNetwork, folder: Path) -> None:
    """Write the files, so that they outlast a loss of power, for everybody who may read the folder above."""
    ov.save_model(converted.model, str(folder / "network.xml"), compress_to_fp16=False)
    description = {
        "name": converted.name,
        "classes": converted.classes,
        "input_size": converted.input_size,
        "strides": converted.kernel_branch.strides,
        "precision": converted.precision,
    }
    head = save(converted.kernel_branch.state_dict(), metadata={"model": json.dumps(description)})
    (folder / "head.safetensors").write_bytes(head)  # not save_file: only the owner could read it
    (folder / "sha256").write_text(_digests(folder))
    folder.chmod(folder.parent.stat().st_mode & 0o777)  # of a temporary folder, too
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot do this for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digests(folder: Path) -> str:
    """The hashes of the files. OpenVINO reads a damaged network without an error, and scores wrongly."""
    lines = []
    for name in _HASHED:
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


def _read(folder: Path) -> ConvertedNetwork:
    if (folder / "sha256").read_text() != _digests(folder):
        raise ValueError("a file differs from what was written")
    with safe_open(str(folder / "head.safetensors"), framework="pt") as file:
        description = json.loads(file.metadata()["model"])
        layers = range(len(file.keys()) // 2)
        weights, biases = ([file.get_tensor(f"{kind}.{layer}") for layer in layers] for kind in ("weights", "biases"))
    kernel_branch = KernelBranch(weights, biases, tuple(description["strides"]))
    return ConvertedNetwork(
        description["name"],
        tuple(description["classes"]),
        description["input_size"],
        kernel_branch,
        description["precision"],
        CORE.read_model(str(folder / "network.xml")),
    )
