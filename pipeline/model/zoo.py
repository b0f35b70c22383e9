"""Finds the file of a model by its name: embedded, downloaded, or a path.

"rtmdet-ins_nano_person"               ─▶ pipeline/model/weights/….safetensors, part of the package
"rtmdet-ins_x_8xb16-300e_coco"         ─▶ cache folder, downloaded on first use (pipeline.model.download)
"/models/mine.pth", "mine.safetensors" ─▶ that file

python -m pipeline.model.zoo list | download NAME … | verify [NAME …]
python -m pipeline.model.zoo import weights.pth --labels cat,dog --image-size 640 --output mine.safetensors
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import yaml
from safetensors import SafetensorError, safe_open

from pipeline.errors import CheckpointError, ConfigurationError, SetupError
from pipeline.model.download import download_file, sha256_of

EMBEDDED_FOLDER = Path(__file__).parent / "weights"
DEFAULT_CACHE = Path("~/.cache/rtmdet-ins-serve").expanduser()
CHECKPOINT_SUFFIXES = (".pth", ".safetensors")
AZUREML_PREFIX = "mmd-3x-"
"""Prefix of mmdet's names in AzureML's model catalogue."""
MIN_LIKENESS = 0.6
"""Least similarity of a wrong name to a suggested one; difflib's ratio and default."""
_FILE_HASH = re.compile(r"-([0-9a-f]{8})\.pth$")


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """What the stages need to know about a model without loading its weights.

    Args:
        classes: label names, in the order of the network's outputs.
        input_size: side of the square network input, pixels.
    """

    classes: tuple[str, ...]
    input_size: int


@cache
def official_urls() -> dict[str, str]:
    """URLs of OpenMMLab's RTMDet-Ins checkpoints by config name, from the metafile that mmdet installs.

    Raises:
        ConfigurationError: mmdet is not installed.
    """
    package = importlib.util.find_spec("mmdet")
    if package is None or package.origin is None:
        raise ConfigurationError("mmdet is not installed; install this project with its dependencies.")
    metafile = Path(package.origin).parent / ".mim/configs/rtmdet/metafile.yml"
    models = yaml.safe_load(metafile.read_text(encoding="utf-8"))["Models"]
    return {model["Name"]: model["Weights"] for model in models if model["Name"].startswith("rtmdet-ins_")}


def embedded_models() -> dict[str, Path]:
    """Models that are part of the package: name to file."""
    return {path.stem: path for path in sorted(EMBEDDED_FOLDER.glob("*.safetensors"))}


def locate(name: str, cache_dir: Path = DEFAULT_CACHE, setting: str = "model.name") -> Path:
    """The file of a model; an official one is downloaded if it is not in the cache.

    Args:
        name: embedded name, official config name, or a path to `.pth` or `.safetensors`.
        cache_dir: folder for downloads.
        setting: name of the setting, for the message.
    Raises:
        ConfigurationError: no such model; the message lists the known names and suggests the most similar one.
        DownloadError: the file could not be fetched or has the wrong hash.
    """
    if name in embedded_models():
        return embedded_models()[name]
    if name in official_urls():
        url = official_urls()[name]
        return download_file(url, cache_dir / "checkpoints" / url.rsplit("/", 1)[-1], sha256_prefix=_hash_in(url))
    path = Path(name).expanduser()
    if path.suffix in CHECKPOINT_SUFFIXES:
        if path.is_file():
            return path
        raise ConfigurationError(f"{setting}: there is no file {path}.")
    known = [*embedded_models(), *official_urls()]
    near = nearest(name, known)
    raise ConfigurationError(
        f"{setting}: {name!r} is neither a known model ({', '.join(known)}) nor a path to a .pth or .safetensors file."
        + (f" Did you mean {near}?" if near else "")
    )


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that is most similar to a wrong one; a longer common prefix counts first, because the size is near the beginning."""
    asked = name.removeprefix(AZUREML_PREFIX)
    likeness = {other: SequenceMatcher(None, asked, other).ratio() for other in known}

    def rank(other: str) -> tuple[int, float]:
        return len(os.path.commonprefix([asked, other])), likeness[other]  # noqa: RUF071  # of characters, not of folders

    return max((other for other in known if likeness[other] >= MIN_LIKENESS), key=rank, default=None)


def read_header(name: str, cache_dir: Path = DEFAULT_CACHE) -> ModelHeader:
    """Classes and input size of a model; loads the weights only for a `.pth`.

    Raises:
        SetupError: as `locate`; CheckpointError if the file has no model description.
    """
    if name in official_urls():
        from pipeline.model.spec import official_spec  # mmdet takes seconds to import: only where it is needed

        spec = official_spec(name)
        return ModelHeader(spec.classes, spec.input_size)
    path = locate(name, cache_dir)
    if path.suffix == ".safetensors":
        return _read_safetensors_header(path)
    from pipeline.model.checkpoints import load_checkpoint

    spec = load_checkpoint(path).spec
    return ModelHeader(spec.classes, spec.input_size)


def hash_of_file(name: str) -> str:
    """First 8 hex digits of the SHA-256 of a model's file; of an official one without a download.

    Raises:
        SetupError: as `locate`.
    """
    return _hash_in(official_urls()[name]) if name in official_urls() else sha256_of(locate(name))[:8]


def _read_safetensors_header(path: Path) -> ModelHeader:
    try:
        with safe_open(str(path), framework="numpy") as file:
            description = json.loads((file.metadata() or {})["model_spec"])
        return ModelHeader(tuple(map(str, description["classes"])), int(description["input_size"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path.name}: its header contains no model description ({error}).") from error


def _hash_in(url: str) -> str:
    found = _FILE_HASH.search(url)
    if found is None:
        raise CheckpointError(f"the file name of {url} carries no hash")
    return found.group(1)


def _list(cache_dir: Path) -> None:
    for name, path in embedded_models().items():
        print(f"{name:36} embedded       {path}")
    for name, url in official_urls().items():
        path = cache_dir / "checkpoints" / url.rsplit("/", 1)[-1]
        print(f"{name:36} {'downloaded' if path.is_file() else 'not downloaded':14} {path if path.is_file() else url}")


def _verify(names: list[str], cache_dir: Path) -> bool:
    """Check the hashes of downloaded models; returns False if any is wrong."""
    right = True
    for name, url in official_urls().items():
        path = cache_dir / "checkpoints" / url.rsplit("/", 1)[-1]
        if names and name not in names:
            continue
        if not path.is_file():
            print(f"{name}: not downloaded")
            right = right and not names
            continue
        fits = sha256_of(path).startswith(_hash_in(url))
        print(f"{name}: {'ok' if fits else 'WRONG HASH, delete it and download again'} {path}")
        right = right and fits
    return right


def _import(source: Path, labels: tuple[str, ...] | None, image_size: int | None, output: Path) -> None:
    """Convert mmdet's weights, a bare state dict or a checkpoint of jobs.finetune to a file that contains labels and input size.

    Raises:
        CheckpointError: the file is not an RTMDet-Ins, labels or size are neither in the file nor given, or they do not fit the network.
    """
    from pipeline.model.checkpoints import load_checkpoint, save_safetensors

    if output.suffix != ".safetensors":
        raise ConfigurationError(f"--output: {output} must end in .safetensors.")
    checkpoint = load_checkpoint(source, labels, image_size)
    save_safetensors(checkpoint, output)
    spec = checkpoint.spec
    print(f"{output}: {spec.name}, {spec.input_size} px, {len(spec.classes)} labels: {', '.join(spec.classes)}")


def _labels(text: str) -> tuple[str, ...]:
    """argparse type: label names, separated by commas, or the lines of a file."""
    is_file = os.path.isfile(text)  # not Path's: it raises for a list that is too long for a file name
    lines = Path(text).read_text(encoding="utf-8-sig").splitlines() if is_file else text.split(",")
    if not (names := tuple(line.strip() for line in lines if line.strip())):
        raise argparse.ArgumentTypeError(f"{text!r} names no label")
    return names


def _side(text: str) -> int:
    """argparse type: a whole number from 1."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.model.zoo", description="List, download and check models.")
    parser.add_argument("action", choices=["list", "download", "verify", "import"])
    parser.add_argument("names", nargs="*", help="official config names; for import: the file")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=DEFAULT_CACHE,
        help="folder of downloaded models, model.cache_dir (default: %(default)s)",
    )
    parser.add_argument(
        "--labels",
        type=_labels,
        help="import: names of the class channels in order, separated by commas, or a file with one per line (default: as the file says)",
    )
    parser.add_argument(
        "--image-size", type=_side, help="import: side of the square network input, px (default: as the file says)"
    )
    parser.add_argument("--output", type=Path, help="import: the .safetensors file to write")
    args = parser.parse_args(arguments)
    if args.action == "list":
        _list(args.cache_dir)
        return 0
    if args.action == "verify":
        return 0 if _verify(args.names, args.cache_dir) else 1
    if args.action == "import" and (len(args.names) != 1 or args.output is None):
        parser.error("import needs one file and --output")
    if not args.names:
        parser.error("download needs at least one name; `list` shows them")
    try:
        if args.action == "import":
            _import(Path(args.names[0]), args.labels, args.image_size, args.output)
        else:
            for name in args.names:
                print(locate(name, args.cache_dir, setting="download"))
    except (SetupError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
