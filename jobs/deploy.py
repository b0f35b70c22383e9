"""Put a trained model into the running service by a rolling update; one that does not start is taken back.

    python -m jobs.deploy runs/mine/final.safetensors --config serve_config.yaml

checkpoint: loads, labels, size ─▶ model.name in the file ─▶ PUT to Ray Serve (`serve deploy`) ─▶ RUNNING ─▶ a photo is scored by it
                                                                    └─ it does not: the file as before, then PUT; status 1

New replicas start beside the old ones, which serve until those are ready (`max_surge_percent` in the file). The file is applied as a
whole, so it must be the one that the service runs. Every node must find the checkpoint under the path given.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jobs.atomic_write import write_atomically
from jobs.command_line import CommandFault, cli_errors, reason_of
from jobs.demo import portrait
from jobs.scoring.service_client import ServiceClient, ServiceFault, base_url, key_from
from pipeline.errors import ConfigurationError
from pipeline.model.checkpoints import load_checkpoint
from serve_app.config.ray_env import set_ray_env

if TYPE_CHECKING:
    from jobs.serve_api import ServeApi


@cli_errors("jobs.deploy", ServiceFault, RuntimeError)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 the new model serves, 1 it does not and what ran before does."""
    args = _parser().parse_args(argv)
    if not args.checkpoint.is_file():
        raise CommandFault(
            f"there is no file {args.checkpoint}. (A model by its name: `model.name` in {args.config}, then `serve deploy`.)"
        )
    checkpoint = load_checkpoint(args.checkpoint)
    checkpoint.network()  # raises where weights are missing or do not fit
    spec = checkpoint.spec
    print(f"{args.checkpoint}: {spec.name}, {spec.input_size} px, labels {', '.join(spec.classes)}", flush=True)
    try:
        before = args.config.read_text(encoding="utf-8")
        after = with_model(before, args.application, str(args.checkpoint.resolve()))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandFault(f"{args.config}: not YAML in UTF-8 ({' '.join(str(error).split())})") from error
    if after == before:
        raise CommandFault(
            f"{args.config} names this file already, and Ray Serve starts nothing anew: give a new model a new file name"
        )
    set_ray_env(args.config.parent / "ray.env")  # before Ray is imported
    from jobs.serve_api import ServeApi

    api = ServeApi(args.address)
    service = ServiceClient(args.url or address_of(after, args.application), args.key_env)
    old = service.info()
    print(f"Runs now: {old.get('model')}. {changed_labels(old.get('classes') or [], spec.classes)}", flush=True)
    api.apply(after)
    try:
        write_atomically(args.config, after)
        api.wait_until_running(args.application, args.timeout_s)
        found = score_one(service, args.photo, spec.name)
    except (Exception, KeyboardInterrupt) as error:
        raise CommandFault(f"{reason_of(error) or 'interrupted'}. {take_back(args.config, before, api)}") from error
    print(f"{service.url} runs {spec.name}; it found {found} object(s) in the photo. {args.config} names it now.")
    return 0


def take_back(config: Path, before: str, api: ServeApi) -> str:
    """Put the file back, then the cluster; returns what came of both."""
    outcomes = []
    try:
        if config.read_text(encoding="utf-8") != before:  # else a full disk kept it
            write_atomically(config, before)
        outcomes.append(f"{config} is as before")
    except Exception as error:
        outcomes.append(f"{config} still names the new model ({reason_of(error)}): put the old one back")
    try:
        api.apply(before)
        outcomes.append("the old model is applied again")
    except Exception as error:
        outcomes.append(f"the new model may run ({reason_of(error)}): give `serve deploy {config}` later")
    return "; ".join(outcomes)


def with_model(text: str, application: str, model: str) -> str:
    """A serve_config.yaml with another `model.name`, all else, comments too, as it was.

    Raises:
        CommandFault: there is no such application or no such entry, or the file would not be valid.
    """
    from serve_app.config_file import check_document

    node = yaml.compose(text, Loader=yaml.SafeLoader)
    items = _entry(node, "applications")
    listed = items.value if isinstance(items, yaml.SequenceNode) else ()
    applications = {getattr(_entry(item, "name"), "value", ""): item for item in listed}
    place = _entry(_entry(_entry(applications.get(application), "args"), "model"), "name")
    if place is None:
        there = ", ".join(applications) or "none"
        raise CommandFault(f"the configuration has no args.model.name of an application {application}; its applications: {there}")
    after = text[: place.start_mark.index] + yaml.dump(model, width=10**9).splitlines()[0] + text[place.end_mark.index :]
    try:
        check_document(yaml.safe_load(after))
    except ConfigurationError as error:
        raise CommandFault(f"the configuration with this model is not valid: {error.message}") from error
    return after


def _entry(node: Any, key: str) -> Any:
    """The value under a key of a YAML mapping; None if there is none."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next((value for name, value in pairs if name.value == key), None)


def address_of(text: str, application: str) -> str:
    """The URL of an application of a configuration."""
    from ray.serve.schema import ServeDeploySchema

    from serve_app import local_run

    document = ServeDeploySchema.model_validate(yaml.safe_load(text))
    prefix = next(app.route_prefix or "/" for app in document.applications if app.name == application)
    return local_run.address_of(document, prefix).rstrip("/")


def changed_labels(old: Sequence[str], new: Sequence[str]) -> str:
    """What clients will see of a change of labels, in a sentence."""
    added, gone = [name for name in new if name not in old], [name for name in old if name not in new]
    changes = [f"{what} labels: {', '.join(names)}" for what, names in (("new", added), ("gone", gone)) if names]
    return "; ".join(changes) or "The labels stay"


def score_one(service: ServiceClient, photo: Path | None, model: str) -> int:
    """Score a photo and return how many objects it has.

    Raises:
        CommandFault: another model answers, or the photo has an error.
    """
    photo = photo or portrait()
    if (runs := service.info().get("model")) != model:
        raise CommandFault(f"the service runs {runs} instead of {model}")
    (answer,) = service.score([base64.b64encode(photo.read_bytes()).decode()], {})
    if "error" in answer:
        raise CommandFault(f"{photo}: {answer['error']['message']}")
    return len(answer["boxes"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.deploy", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("checkpoint", type=Path, help=".safetensors or .pth, at a path that every node finds")
    add(
        "--config",
        type=Path,
        default=Path("serve_config.yaml"),
        help="file that the service runs; model.name is changed in it (default: %(default)s)",
    )
    add("--application", default="rtmdet-ins", help="name of the application in that file (default: %(default)s)")
    add(
        "--address",
        default=os.environ.get("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:8265"),
        help="Ray's dashboard, as of `serve deploy` (default: $RAY_DASHBOARD_ADDRESS, else http://127.0.0.1:8265)",
    )
    add("--url", type=base_url, help="base URL of the service (default: by the file's http_options)")
    add("--key-env", type=key_from, metavar="NAME", help="environment variable that holds the service's key")
    add("--photo", type=Path, help="photo that is scored at the end (default: a portrait)")
    add(
        "--timeout-s",
        type=float,
        default=300,
        help="longest time until the new model runs, then the old one is put back (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
