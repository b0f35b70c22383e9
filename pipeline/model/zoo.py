"""From a model's name to its file on disk: embedded, downloaded, or the user's own.

"rtmdet-ins_nano_person"              ─▶ pipeline/model/weights/….safetensors, comes with the code
"rtmdet-ins_x_8xb16-300e_coco"        ─▶ cache folder, downloaded on first use (pipeline.model.download)
"/models/mine.pth", "mine.safetensors" ─▶ itself

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
"""What AzureML's model catalogue puts before mmdet's names."""
MIN_LIKENESS = 0.6
"""Of a wrong name to the one that it may be meant for; difflib's own measure and default."""
_FILE_HASH = re.compile(r"-([0-9a-f]{8})\.pth$")


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """What the stages must know of a model before its weights are loaded.

    Args:
        classes: label names, in the order of the network's outputs.
        input_size: side of the square network input, pixels.
    """

    classes: tuple[str, ...]
    input_size: int


@cache
def official_urls() -> dict[str, str]:
    """URLs of OpenMMLab's RTMDet-Ins checkpoints by config name, from the metafile that mmdet installs."""
    package = importlib.util.find_spec("mmdet")
    if package is None or package.origin is None:
        raise ConfigurationError("mmdet is not installed; install this project with its dependencies.")
    metafile = Path(package.origin).parent / ".mim/configs/rtmdet/metafile.yml"
    models = yaml.safe_load(metafile.read_text(encoding="utf-8"))["Models"]
    return {model["Name"]: model["Weights"] for model in models if model["Name"].startswith("rtmdet-ins_")}


def embedded_models() -> dict[str, Path]:
    """Files that come with the code, by name."""
    return {path.stem: path for path in sorted(EMBEDDED_FOLDER.glob("*.safetensors"))}


def locate(name: str, cache_dir: Path = DEFAULT_CACHE, setting: str = "model.name") -> Path:
    """The file of a model; an official one is downloaded if it is not there yet.

    Args:
        name: embedded name, official config name, or a path to `.pth` or `.safetensors`.
        cache_dir: folder for downloads.
        setting: where the name was given, for the message.
    Raises:
        ConfigurationError: no such model; the known names are listed, and the nearest is suggested.
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
    """The known name that a wrong one may be meant for. One that begins alike comes first: what follows the size says less."""
    asked = name.removeprefix(AZUREML_PREFIX)
    likeness = {other: SequenceMatcher(None, asked, other).ratio() for other in known}

    def rank(other: str) -> tuple[int, float]:
        return len(os.path.commonprefix([asked, other])), likeness[other]  # noqa: RUF071  # of characters, not of folders

    return max((other for other in known if likeness[other] >= MIN_LIKENESS), key=rank, default=None)


def read_header(name: str, cache_dir: Path = DEFAULT_CACHE) -> ModelHeader:
    """Classes and input size of a model, without loading its weights where that can be avoided.

    Raises:
        SetupError: as `locate`; CheckpointError where the file holds no model description.
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


def _read_safetensors_header(path: Path) -> ModelHeader:
    try:
        with safe_open(str(path), framework="numpy") as file:
            description = json.loads((file.metadata() or {})["model_spec"])
        return ModelHeader(tuple(map(str, description["classes"])), int(description["input_size"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path.name}: its header describes no model ({error}).") from error


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
    """Check hashes of what is downloaded; False when any is wrong."""
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


def _import(source: Path, labels: str | None, image_size: int | None, output: Path) -> None:
    """Write mmdet's weights, or a bare state dict, as a file that knows its labels and its image size.

    Raises:
        CheckpointError: the file is no RTMDet-Ins, or labels or size are known neither from it nor from here.
    """
    from pipeline.model.checkpoints import load_checkpoint, save_safetensors

    if output.suffix != ".safetensors":
        raise ConfigurationError(f"--output: {output} must end in .safetensors.")
    checkpoint = load_checkpoint(source, _labels(labels) if labels else None, image_size)
    save_safetensors(checkpoint, output)
    spec = checkpoint.spec
    print(f"{output}: {spec.name}, {spec.input_size} px, {len(spec.classes)} labels: {', '.join(spec.classes)}")


def _labels(told: str) -> tuple[str, ...]:
    """Names between commas, or the lines of a file."""
    names = Path(told).read_text(encoding="utf-8").splitlines() if Path(told).is_file() else told.split(",")
    return tuple(name.strip() for name in names if name.strip())


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.model.zoo", description="List, download and check models.")
    parser.add_argument("action", choices=["list", "download", "verify", "import"])
    parser.add_argument("names", nargs="*", help="official config names; for import, the file")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument(
        "--labels", help="import: names of the class channels in their order, between commas or as lines of a file"
    )
    parser.add_argument("--image-size", type=int, help="import: side of the square network input, px (default: as the file says)")
    parser.add_argument("--output", type=Path, help="import: the .safetensors file to write")
    args = parser.parse_args(arguments)
    if args.action == "list":
        _list(args.cache_dir)
        return 0
    if args.action == "verify":
        return 0 if _verify(args.names, args.cache_dir) else 1
    if args.action == "import" and (len(args.names) != 1 or args.output is None):
        parser.error("import takes one file, and --output")
    if not args.names:
        parser.error("name what to download; `list` shows the names")
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
