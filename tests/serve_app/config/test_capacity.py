"""The chain of a configuration: what each part allows, and which is the bottleneck."""

import re
from pathlib import Path

import pytest
import yaml

from serve_app.config.capacity import NETWORK, StageCosts, Step, as_lines, bottleneck, rates, step_of
from serve_app.config.relations import replicas
from serve_app.config_file import check_config

REPOSITORY = Path(__file__).parents[3]
COSTS = StageCosts(ingress_ms=4, loader_ms=2, decode_ms=2, polygonizer_ms=2, fetch_ms=90)


def read(name):
    """Settings and deployments of a shipped file."""
    (settings,) = check_config(REPOSITORY / name)
    (application,) = yaml.safe_load((REPOSITORY / name).read_text())["applications"]
    return settings, {entry["name"]: entry for entry in application["deployments"]}


def by_name(chain):
    return {rate.name: (round(rate.at_min), round(rate.at_max)) for rate in chain}


def test_every_part_has_its_rate():
    """Worked out by hand: 2 to 4 ingresses, 2 loaders of 2 threads, 1 detector of 8 images in 18 ms, 2 polygonizers, 2 calls of 8
    images."""
    settings, deployments = read("serve_config.yaml")
    deployments["Ingress"] |= {"num_replicas": "auto", "autoscaling_config": {"min_replicas": 2, "max_replicas": 4}}
    bodies, by_url = rates(settings, deployments, COSTS, Step(2, 2))
    assert by_name(bodies) == {
        "HTTP (Ingress)": (500, 1000),
        "other work (ImageLoader)": (1000, 1000),
        "decode": (2000, 2000),
        NETWORK: (444, 444),
        "outlines (Polygonizer)": (1000, 1000),
        "calls in flight": (211, 421),  # 16 images in 8 x 5 + 2 x 18 ms
    }
    assert by_name(by_url)["URLs in flight"] == (489, 977)  # 64 in 90 + 5 + 36 ms
    assert bottleneck(bodies, at_max=True).setting == "args.ingress.groups.max_in_flight"
    assert bottleneck(by_url, at_max=True).name == NETWORK
    said = as_lines(settings, deployments, COSTS, Step(2, 2))
    assert [line.split()[-2:] for line in said if "in flight  " in line] == [["211", "421"], ["489", "977"]]
    assert "; with max_replicas calls in flight, 421/s" in next(line for line in said if "for images in the body" in line)
    assert "max_replicas" not in next(line for line in said if "for URLs" in line)


def test_without_a_step_the_network_is_left_out():
    """For a model without measured figures, the output says so and computes the rest."""
    settings, deployments = read("serve_config.yaml")
    bodies, _ = rates(settings, deployments, COSTS, None)
    assert NETWORK not in by_name(bodies)
    assert "unknown for" in "\n".join(as_lines(settings, deployments, COSTS, None))


@pytest.mark.parametrize(
    ("deployment", "expected"),
    [
        ({}, (1, 1)),
        ({"num_replicas": 3}, (3, 3)),
        ({"autoscaling_config": {"min_replicas": 2, "max_replicas": 5}}, (2, 5)),
        ({"num_replicas": "auto", "autoscaling_config": {"max_replicas": 7}}, (1, 7)),
    ],
)
def test_replicas(deployment, expected):
    assert replicas({"name": "Detector"} | deployment) == expected


def test_step_of_what_is_served():
    """Simulated as the file says, measured where docs/RESULTS.md has it."""
    settings, deployments = read("serve_config.gpu.yaml")
    step = step_of(settings, deployments)
    assert step is not None
    assert step.per_s(8) == pytest.approx(630, rel=0.03)
    embedded = read("serve_config.yaml")
    assert step_of(*embedded).per_s(8) == pytest.approx(75, rel=0.03)
    assert step_of(settings, embedded[1]) is None  # RTMDet-Ins-x on a CPU
    simulated = settings.model_copy(update={"detector": settings.detector.model_copy(update={"engine": "simulated"})})
    assert step_of(simulated, deployments) == Step(5, 2)


@pytest.mark.parametrize("at_max", [False, True], ids=["fewest replicas", "most replicas"])
def test_the_gpus_are_the_bottleneck_of_the_gpu_configuration(at_max):
    """At the stated costs everything around the GPUs carries more than they do: with one GPU, and with all of them; URLs, too."""
    settings, deployments = read("serve_config.gpu.yaml")
    for chain in rates(settings, deployments, StageCosts(), step_of(settings, deployments)):
        assert bottleneck(chain, at_max=at_max).name == NETWORK, by_name(chain)


def test_measured_costs_are_not_called_assumed():
    """Nor is it said how to measure them."""
    settings, deployments = read("serve_config.yaml")
    costs = StageCosts(ingress_ms=3.83473)
    assert "assumed ms per image: Ingress 3.83," in as_lines(settings, deployments, costs, Step(2, 2))[-1]
    assert as_lines(settings, deployments, costs, Step(16.9119, 31.1168), measured=True)[-1] == (
        "with ms per image: Ingress 3.83, ImageLoader 2 and decoding 1.9, Polygonizer 1.4, a pass of the network 16.9 + 31.1 x batch; "
        "200 to fetch a URL"
    )


@pytest.mark.parametrize("layout", ["stages", "together"])
def test_the_commands_it_names_are_accepted(layout):
    """Each `python -m loadtest …` in the output has the arguments that the program requires."""
    main = pytest.importorskip("loadtest.__main__", reason="loadtest is not installed: .venv/bin/pip install -e '.[load]'")
    settings, deployments = read("serve_config.yaml" if layout == "stages" else "serve_config.together.yaml")
    said = "\n".join(as_lines(settings, deployments, COSTS, None))
    commands = re.findall(r"python -m loadtest ([a-z]+(?: --[a-z]+ [\w.]+)*)", said)
    assert [main._parser().parse_args(command.split()).command for command in commands] == (
        ["costs", "costs", "plan"] if layout == "stages" else ["run"]
    )
