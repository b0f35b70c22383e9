"""Runs the steps of deploy/Dockerfile without a container engine, and scores a photo with the result.

    sudo python3 .ci/try_in_chroot.py /var/tmp/rtmdet-image [--build-arg NAME=VALUE ...]

Makes a chroot of Debian bookworm with mmdebstrap (its Python 3.11 takes the place of the FROM image's), carries out the other
instructions in it as Docker would, starts the service in it from an empty home as the image's user, and runs `python -m jobs.demo`.
Needs root, Linux x86-64, mmdebstrap and util-linux; about 6 GB and ten minutes. pip's settings in the environment (PIP_*) hold inside too.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
DOCKERFILE = REPOSITORY / "deploy/Dockerfile"
FROM_PACKAGES = "ca-certificates,python3-venv,python3-pip"
START_TIMEOUT_S = 180
START = (
    "set -a; RAY_AUTH_MODE=disabled; RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S=1; set +a; exec serve run serve_config.yaml"
)
"""One node on loopback needs no token and no draining. The rest of the environment is the image's."""


@dataclass
class Build:
    """State set by the instructions so far."""

    root: Path
    arguments: dict[str, str]
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0"

    def carry_out(self, word: str, rest: str) -> None:
        """Execute one instruction of the Dockerfile."""
        match word:
            case "FROM":
                return
            case "ARG":
                name, _, default = rest.partition("=")
                self.environment[name] = self.arguments.get(name, default)
            case "ENV":
                self.environment |= dict(part.split("=", 1) for part in shlex.split(rest))
            case "WORKDIR":
                self.workdir = rest
                (self.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                self.user = rest
            case "COPY":
                *sources, target = rest.split()
                for source in sources:
                    self._copy(REPOSITORY / source, self.root / self.workdir.lstrip("/") / target)
            case "RUN":
                subprocess.run(self.inside(rest), check=True)
            case _:
                raise SystemExit(f"{DOCKERFILE.name}: {word} is not known to {Path(__file__).name}")

    def inside(self, command: str) -> list[str]:
        """The command line that runs a shell command in the chroot, as the user and in the folder of this moment."""
        home = "/root" if self.user == "0" else "/home/serve"
        settings = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": home,
            "DEBIAN_FRONTEND": "noninteractive",
            "LANG": "C.UTF-8",
        }
        settings |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")} | self.environment
        words = [f"{name}={value}" for name, value in settings.items()]
        script = f"cd {shlex.quote(self.workdir)} && {command}"
        return ["chroot", f"--userspec={self.user}:{self.user}", str(self.root), "env", "-i", *words, "bash", "-c", script]

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, the rest of its line), comments dropped and continued lines joined."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(word, rest) for word, rest in (line.split(maxsplit=1) for line in lines if line.strip())]


def make_root(root: Path) -> None:
    """The chroot in place of the FROM image, with this machine's package sources."""
    if not (root / "usr/bin/python3").exists():
        sources = "\n".join(path.read_text() for path in sorted(Path("/etc/apt").glob("sources.list*")) if path.is_file())
        command = [
            "mmdebstrap",
            "--variant=apt",
            f"--include={FROM_PACKAGES}",
            "bookworm",
            str(root),
            *(["-"] if sources.strip() else []),
        ]
        subprocess.run(command, input=sources, text=True, check=True)
    for name in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt", "etc/pip.conf", "etc/xdg/pip/constraints.txt"):
        if Path("/", name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path("/", name), root / name)
    (root / "usr/bin/python").unlink(missing_ok=True)
    (root / "usr/bin/python").symlink_to("python3")
    # The image's Python lets pip install into its prefix; Debian's must be told.
    next(root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"), root / "none").unlink(missing_ok=True)


def mount(root: Path) -> None:
    """What a container engine mounts, and this machine's wheels where pip's settings name a folder of them."""
    subprocess.run(["mount", "-t", "proc", "proc", str(root / "proc")], check=True)
    subprocess.run(["mount", "--rbind", "/dev", str(root / "dev")], check=True)
    for folder in filter(os.path.isdir, os.environ.get("PIP_FIND_LINKS", "").split()):
        (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", folder, str(root / folder.lstrip("/"))], check=True)


def score_a_photo(build: Build) -> None:
    """Start the service as the image's user, wait until it is ready, and run the demo against it."""
    home = build.root / build.workdir.lstrip("/")
    shutil.copy(REPOSITORY / "serve_config.yaml", home)
    log = build.root / "tmp/serve.log"
    with log.open("wb") as output, subprocess.Popen(build.inside(START), stdout=output, stderr=output) as service:
        try:
            ready = build.inside("wget --quiet --output-document=- http://127.0.0.1:8000/ready")
            deadline = time.monotonic() + START_TIMEOUT_S
            while subprocess.run(ready, capture_output=True, check=False).returncode:
                if service.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the service did not start; its log: {log}")
                time.sleep(1)
            subprocess.run(build.inside("python -m jobs.demo"), check=True)
        finally:
            service.terminate()


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of the chroot; made where it is not there")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as docker build's")
    args = parser.parse_args()
    if os.environ.get("IN_NAMESPACE") != "yes":  # mounts and processes end with this program
        os.environ["IN_NAMESPACE"] = "yes"
        os.execvp("unshare", ["unshare", "--mount", "--pid", "--fork", "--kill-child", sys.executable, *sys.argv])
    root = args.root.resolve()
    make_root(root)
    mount(root)
    build = Build(root, dict(argument.split("=", 1) for argument in args.build_arg))
    for word, rest in instructions(DOCKERFILE.read_text(encoding="utf-8")):
        print(f"{word} {rest[:110]}", flush=True)
        build.carry_out(word, rest)
    score_a_photo(build)
    print(f"built, started and scored in {root}; the picture lies in {build.workdir}/demo_output there")


if __name__ == "__main__":
    main()
