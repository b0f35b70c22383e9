"""Write a model for other programs: ONNX with post-processing, or mmdet's own files.

    python -m jobs.export runs/mine/final.safetensors --output mine.onnx
    python -m jobs.export runs/mine/final.safetensors --output mine.pth      # and mine.py, mmdet's configuration

docs/TRAINING.md describes inputs and outputs of the ONNX model. It is compared with this project's engine.
"""

from __future__ import annotations

import jobs.third_party  # isort: skip  # noqa: F401  (before mmdet)

import argparse
import importlib.util
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.atomic_write import atomic_file
from jobs.command_line import CommandFault, check_outputs, cli_errors, count
from jobs.exporting.mmdet_files import write_mmdet
from pipeline.images.letterbox import PAD_VALUE
from pipeline.model.checkpoints import Checkpoint, load_checkpoint
from pipeline.model.zoo import locate
from pipeline.types import COARSEST_STRIDE_PX, MASK_STRIDE_PX

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@cli_errors("jobs.export", status=2)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    options = _parser().parse_args(argv)
    output: Path = options.output
    if output.suffix not in (".onnx", ".pth"):
        raise CommandFault(f"--output: {output} must end in .onnx, or in .pth for mmdet.")
    check_outputs({"--output": output}, {"the model": options.model})
    if output.suffix == ".onnx" and (missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]):
        raise CommandFault(f"ONNX needs {', '.join(missing)}, not installed here: .venv/bin/pip install -e '.[export]'")
    checkpoint = load_checkpoint(locate(options.model, setting="the model"))
    if options.image_size:
        checkpoint = replace(checkpoint, spec=replace(checkpoint.spec, input_size=options.image_size))
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".pth":
        print(*(f"{path}: written." for path in write_mmdet(checkpoint, output)), sep="\n")
    else:
        export_onnx(checkpoint, output, options.max_detections)
    return 0


def export_onnx(checkpoint: Checkpoint, output: Path, detections: int) -> None:
    """Write the model, compare it with the engine and print the result; deletes the file if it differs."""
    from jobs.exporting.onnx_model import check_onnx, write_onnx

    size = checkpoint.spec.input_size
    fewest = sum((size // stride) ** 2 for stride in (8, 16, COARSEST_STRIDE_PX))
    if detections > fewest:
        raise CommandFault(f"--max-detections: {detections} is more than the {fewest} positions of a {size} px input.")
    description = {
        "name": checkpoint.spec.name,
        "labels": list(checkpoint.spec.classes),
        "input": "uint8 BGR, scaled to fit keeping the ratio, at the top left, padded; normalised within the model",
        "pad_value": PAD_VALUE,
        "mask_stride_px": MASK_STRIDE_PX,
    }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # that torchvision, which nothing here needs, is not installed
    with atomic_file(output) as draft:
        write_onnx(checkpoint, draft, size, detections, {name: json.dumps(value) for name, value in description.items()})
        print(check_onnx(draft, checkpoint, size, detections))
    print(f"{output}: written, {size} px, {len(checkpoint.spec.classes)} labels, {detections} rows per image.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.export", description="Write a model as ONNX or as mmdet's files.")
    add = parser.add_argument
    add("model", help="a name from `python -m pipeline.model.zoo list`, or a .pth or .safetensors file")
    add("--output", type=Path, required=True, help="file to write: .onnx; or .pth with mmdet's configuration, .py, beside it")
    add("--image-size", type=count, help="side of the square network input, pixels, a multiple of 32 (default: the model's)")
    add("--max-detections", type=count, default=100, help="rows per image in the ONNX model's outputs (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
