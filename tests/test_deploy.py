"""deploy/ agrees with the files it repeats. Neither Docker nor Kubernetes is needed, so what they make of it is not tested here."""

import copy
import ipaddress
import re
import shlex
import subprocess
import sys
from pathlib import Path, PurePosixPath

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _generate_available_node_types_from_ray_cr_spec

from jobs import batch_ray
from pipeline.images.fetch import FetchPolicy
from serve_app.config.ray_env import read_ray_env
from serve_app.config_file import check_config

REPOSITORY = Path(__file__).parents[1]
GPU_CONFIG = yaml.safe_load((REPOSITORY / "serve_config.gpu.yaml").read_text())
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text()
DOCKERFILE = (REPOSITORY / "deploy/Dockerfile").read_text()
MANIFEST_TEXT = (REPOSITORY / "deploy/rayservice.yaml").read_text()
MANIFEST, *OTHERS = yaml.safe_load_all(MANIFEST_TEXT)
BUDGETS = [document for document in OTHERS if document["kind"] == "PodDisruptionBudget"]
POLICIES = {policy["metadata"]["name"]: policy["spec"] for policy in OTHERS if policy["kind"] == "NetworkPolicy"}
LOGS_TEXT = (REPOSITORY / "monitoring/fluent-bit.yaml").read_text()
CRDS = REPOSITORY.parent / "shared/kuberay"
BATCH = yaml.safe_load((REPOSITORY / "deploy/rayjob.yaml").read_text())
BATCH_CLUSTER = BATCH["spec"]["rayClusterSpec"]
BATCH_PODS = [group["template"]["spec"] for group in (BATCH_CLUSTER["headGroupSpec"], *BATCH_CLUSTER["workerGroupSpecs"])]
BATCH_PODS.append(BATCH["spec"]["submitterPodTemplate"]["spec"])
CLUSTER = MANIFEST["spec"]["rayClusterConfig"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
PODS = [group["template"]["spec"] for group in GROUPS]
DIFFERENT = {"RAY_AUTH_MODE": "token", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "30"}
"""Where a cluster behind a load balancer wants another value than ray.env, which is for one machine."""
SET_BY_KUBERAY = ("RAY_timeout_ms_task_wait_for_death_info",)
"""KubeRay gives the pods of a RayService another value than the image's if their `env` has none (setContainerEnvVars in its pod.go)."""
SEVERAL_LINES = ("RAY_SERVE_HAPROXY_RETRY_ON", "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM")
"""ENV of a Dockerfile takes their first lines only."""


def instructions(name):
    """The arguments of each such instruction of the Dockerfile."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)


def test_serves_the_file_for_gpus(tmp_path):
    """serveConfigV2 is serve_config.gpu.yaml, and passes its check."""
    config = MANIFEST["spec"]["serveConfigV2"]
    document = yaml.safe_load(config)
    ingress = document["applications"][0]["deployments"][0]
    # Only where there are several nodes: a lost one takes only some of the Ingresses, and the pods that are always there hold them all.
    most_on_a_node = ingress.pop("max_replicas_per_node")
    assert (
        most_on_a_node
        < ingress["autoscaling_config"]["min_replicas"]
        <= most_on_a_node * CLUSTER["workerGroupSpecs"][1]["minReplicas"]
    )
    assert document == GPU_CONFIG
    (tmp_path / "serve_config.yaml").write_text(config)
    assert check_config(tmp_path / "serve_config.yaml")


def test_image_has_the_environment_of_ray():
    """Every variable of ray.env is in the image with its value, but for those that differ on purpose."""
    (environment,) = instructions("ENV")
    expected = read_ray_env(REPOSITORY / "ray.env") | DIFFERENT
    expected |= {name: expected[name].partition("\n")[0] for name in SEVERAL_LINES}
    assert dict(word.split("=", 1) for word in shlex.split(environment)) == expected


def test_programs_of_the_image_run():
    """What the Dockerfile runs of our code."""
    programs = [shlex.split(command)[1:] for command in instructions("RUN") if command.startswith("python ")]
    assert programs
    for program in programs:
        subprocess.run([sys.executable, *program], check=True, cwd=REPOSITORY)


def test_pods_agree_with_the_image():
    """What the manifest sets again has the same value in every pod; the token's mode is KubeRay's to set. What ENV cuts is whole here."""
    ray_env = read_ray_env(REPOSITORY / "ray.env")
    expected = DIFFERENT | {name: ray_env[name] for name in (*SEVERAL_LINES, *SET_BY_KUBERAY)}
    for pod in PODS:
        environment = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
        assert environment | {"RAY_AUTH_MODE": CLUSTER["authOptions"]["mode"]} == expected


def test_ray_is_the_version_of_the_project():
    """rayVersion decides how KubeRay talks to the pods."""
    assert f'"ray[serve]=={CLUSTER["rayVersion"]}"' in PYPROJECT


def test_replicas_fit_into_the_pods():
    """As Ray's autoscaler reads the manifest: none on the head, a GPU for each Detector, CPUs for the most replicas of the others."""
    head, gpu, cpu = _generate_available_node_types_from_ray_cr_spec(CLUSTER).values()
    stages = {entry["name"]: entry for entry in GPU_CONFIG["applications"][0]["deployments"]}
    most = {
        name: entry.get("autoscaling_config", {}).get("max_replicas") or entry["num_replicas"] for name, entry in stages.items()
    }
    cpus = {name: entry["ray_actor_options"]["num_cpus"] for name, entry in stages.items()}
    assert head["resources"]["CPU"] == 0
    assert (
        gpu["resources"]["GPU"] * gpu["max_workers"] == most.pop("Detector") * stages["Detector"]["ray_actor_options"]["num_gpus"]
    )
    # No other replica starts there first and keeps the GPU from a Detector.
    assert gpu["resources"]["CPU"] == cpus["Detector"] == 0
    assert all(cpus[name] for name in most)
    assert cpu["resources"]["CPU"] * cpu["max_workers"] >= sum(cpus[name] * count for name, count in most.items())


@pytest.mark.parametrize("pod", PODS, ids=["head", *(group["groupName"] for group in GROUPS[1:])])
def test_pods_hold_what_the_settings_name(pod):
    """The keys' file and the cache folder lie on volumes, keys not by subPath, which would never change; memory is requested; not root."""
    (container,) = pod["containers"]
    args = GPU_CONFIG["applications"][0]["args"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    keys = mounts[str(PurePosixPath(args["ingress"]["auth"]["keys_file"]).parent)]
    assert "subPath" not in keys
    assert args["model"]["cache_dir"].replace("~", instructions("WORKDIR")[-1]) not in mounts  # the image has the model there
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert str(pod["securityContext"]["runAsUser"]) == instructions("USER")[-1] == "1000"


def test_the_image_holds_the_model_that_is_served():
    """New pods download nothing."""
    (model,) = re.findall(r"^ARG MODEL=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert model == GPU_CONFIG["applications"][0]["args"]["model"]["name"]


def test_pods_answer_until_nobody_sends_to_them_any_more():
    """A pod outlives its Ingress' draining and the longest request; an Ingress outlives them within its pod."""
    config = GPU_CONFIG["applications"][0]["deployments"][0], GPU_CONFIG["http_options"]
    draining_s, request_s = int(DIFFERENT["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"]), config[1]["request_timeout_s"]
    assert config[0]["graceful_shutdown_timeout_s"] > draining_s + deadline_s()
    for pod in PODS[1:]:
        (container,) = pod["containers"]
        pause_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        assert pod["terminationGracePeriodSeconds"] > pause_s >= draining_s + request_s


def deadline_s():
    """The longest time that an image may take by our own setting."""
    (settings,) = check_config(REPOSITORY / "serve_config.gpu.yaml")
    return settings.ingress.timeout_s


def labels_of(group):
    """The labels of a group's pods, by which other objects may select: the template's, and those that KubeRay adds."""
    kind = "head" if group is GROUPS[0] else "worker"
    return group["template"]["metadata"]["labels"] | {
        "ray.io/node-type": kind,
        "ray.io/group": group.get("groupName", "headgroup"),
    }


def selected(selector):
    """The groups whose pods have the labels."""
    return [group.get("groupName", "head") for group in GROUPS if selector["matchLabels"].items() <= labels_of(group).items()]


def test_disruptions_take_one_pod_at_a_time():
    """Each group of workers has its budget, which selects its pods and no others."""
    groups = [group["groupName"] for group in CLUSTER["workerGroupSpecs"]]
    assert sorted(selected(budget["spec"]["selector"]) for budget in BUDGETS) == sorted([name] for name in groups)
    assert all(budget["spec"]["maxUnavailable"] == 1 for budget in BUDGETS)


def test_only_the_service_is_open_to_everybody():
    """Other ports than that of the service are open to the pods themselves, and one each to KubeRay's operator and Prometheus."""
    policy = POLICIES["rtmdet-ins"]
    own, *rules = policy["ingress"]
    assert selected(policy["podSelector"]) == ["head", "gpu", "cpu"]
    assert own == {"from": [{"podSelector": policy["podSelector"]}]}
    assert policy["policyTypes"] == ["Ingress"]
    opened = {}
    for rule in rules:
        (port,) = (entry["port"] for entry in rule["ports"])
        (peer,) = rule.get("from", [None])
        opened[port] = peer and peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"]
    assert opened == {GPU_CONFIG["http_options"]["port"]: None, 8265: "kuberay-operator", 8080: "prometheus"}


@pytest.mark.parametrize(
    ("address", "reached"),
    [("8.8.8.8", True), ("2606:4700::1111", True)]
    + [
        (address, False)
        for address in ("10.1.2.3", "100.64.0.1", "169.254.169.254", "172.31.0.1", "192.168.0.1", "fd00::1", "fe80::1")
    ],
)
def test_workers_fetch_from_the_outside_only(address, reached):
    """Beside each other and DNS, workers reach public addresses, at the ports that fetching allows by default."""
    policy = POLICIES["rtmdet-ins-workers"]
    own, dns, outside = policy["egress"]
    assert selected(policy["podSelector"]) == ["gpu", "cpu"]
    assert own == {"to": [{"podSelector": POLICIES["rtmdet-ins"]["podSelector"]}]}
    assert policy["policyTypes"] == ["Egress"]
    assert {entry["port"] for entry in dns["ports"]} == {53}
    assert tuple(entry["port"] for entry in outside["ports"]) == FetchPolicy().allowed_ports
    blocks = [peer["ipBlock"] for peer in outside["to"]]
    assert reached == any(
        ipaddress.ip_address(address) in ipaddress.ip_network(block["cidr"])
        and not any(ipaddress.ip_address(address) in ipaddress.ip_network(net) for net in block["except"])
        for block in blocks
    )


def test_pods_are_restricted():
    """What the Pod Security Standard `restricted` asks for, of every container. KubeRay's own take the settings of the autoscaler's options
    or of Ray's container; a submitter of jobs has none but those of its template."""
    containers = [CLUSTER["autoscalerOptions"], *(container for pod in (*PODS, *BATCH_PODS) for container in pod["containers"])]
    for security in (container["securityContext"] for container in containers):
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
    for pod in (*PODS, *BATCH_PODS):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all({"secret", "emptyDir", "configMap"} & volume.keys() for volume in pod.get("volumes", []))


def strict(schema):
    """The schema with every field that it does not name forbidden, where it names any."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def validator_of(kind):
    """KubeRay's own schema of a kind, in which a field that it does not know is an error."""
    versions = yaml.safe_load((CRDS / f"ray.io_{kind}.yaml").read_text())["spec"]["versions"]
    (schema,) = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    return jsonschema.Draft7Validator(strict({**schema, "properties": {**schema["properties"], "metadata": {}}}))


@pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's schemas are not part of the repository: ../shared/kuberay")
@pytest.mark.parametrize(
    ("kind", "manifest", "cluster"),
    [("rayservices", MANIFEST, "rayClusterConfig"), ("rayjobs", BATCH, "rayClusterSpec")],
)
def test_kuberay_accepts_the_manifests(kind, manifest, cluster):
    """No error and no unknown field; a field that it does not know would be found."""
    validator = validator_of(kind)
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)] == []
    wrong = copy.deepcopy(manifest)
    wrong["spec"][cluster]["workerGroupSpecs"][0]["maxReplica"] = 4
    assert not validator.is_valid(wrong)


def test_prometheus_operator_finds_every_pod():
    """The PodMonitor selects all pods and scrapes KubeRay's port, at the interval of monitoring/prometheus.yml."""
    monitor = yaml.safe_load((REPOSITORY / "monitoring/podmonitor.yaml").read_text())["spec"]
    prometheus = yaml.safe_load((REPOSITORY / "monitoring/prometheus.yml").read_text())
    assert selected(monitor["selector"]) == ["head", "gpu", "cpu"]
    assert monitor["podMetricsEndpoints"] == [{"port": "metrics", "interval": prometheus["global"]["scrape_interval"]}]


def test_logs_leave_the_pods():
    """The sidecar of monitoring/fluent-bit.yaml mounts what it reads, in pods that KubeRay accepts."""
    comment = LOGS_TEXT[LOGS_TEXT.index("#   volumeMounts:") : LOGS_TEXT.index("apiVersion:")]
    parts = yaml.safe_load(re.sub(r"^# ", "", comment, flags=re.MULTILINE))
    config_map = yaml.safe_load(LOGS_TEXT)
    config = yaml.safe_load(config_map["data"]["fluent-bit.yaml"])
    (sidecar,), (source,), (parser,) = parts["initContainers"], config["pipeline"]["inputs"], config["parsers"]
    mounts = {mount["name"]: PurePosixPath(mount["mountPath"]) for mount in sidecar["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in parts["volumes"]}
    assert parts["volumeMounts"] == [{"name": "ray-logs", "mountPath": "/tmp/ray"}]
    assert mounts["ray-logs"] in PurePosixPath(source["path"]).parents
    assert mounts["ray-logs"] in PurePosixPath(source["db"]).parents
    assert sidecar["command"][1] == f"--config={mounts['fluent-bit'] / 'fluent-bit.yaml'}"
    assert parts["volumes"][1]["configMap"]["name"] == config_map["metadata"]["name"]
    assert sidecar["securityContext"] == CLUSTER["autoscalerOptions"]["securityContext"]
    assert source["parser"] == parser["name"]
    if CRDS.is_dir():
        manifest = copy.deepcopy(MANIFEST)
        cluster = manifest["spec"]["rayClusterConfig"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            pod["initContainers"] = [sidecar]
            pod["volumes"] = [*pod["volumes"], *parts["volumes"]]
            (container,) = pod["containers"]
            container["volumeMounts"] = [*container["volumeMounts"], *parts["volumeMounts"]]
        assert [error.message for error in validator_of("rayservices").iter_errors(manifest)] == []


@pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's schemas are not part of the repository: ../shared/kuberay")
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_kubernetes_knows_the_rules_of_the_policies(direction):
    """No unknown field in a rule: KubeRay's schema has those of NetworkPolicy for policies of its own."""
    versions = yaml.safe_load((CRDS / "ray.io_rayclusters.yaml").read_text())["spec"]["versions"]
    (schema,) = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    rules = schema["properties"]["spec"]["properties"]["networkPolicy"]["properties"]["head"]["properties"][f"{direction}Rules"]
    (found,) = [policy[direction] for policy in POLICIES.values() if direction in policy]
    assert [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(strict(rules)).iter_errors(found)] == []


def test_the_batch_fits_into_its_pods():
    """Its command line is one that the job takes, and its workers have the CPUs and GPUs that they ask for."""
    words = shlex.split(BATCH["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs.batch_ray"]
    args = batch_ray._parser().parse_args(words[3:])
    (group,) = BATCH["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    resources = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert args.detectors * args.detector_gpus == group["replicas"] * int(resources["nvidia.com/gpu"])
    asked = args.detectors * args.detector_cpus + (args.loaders + args.outliners) * args.worker_cpus
    assert asked < group["replicas"] * int(resources["cpu"]), "Ray Data's own tasks want some, too"
    assert BATCH["spec"]["rayClusterSpec"]["rayVersion"] == CLUSTER["rayVersion"]


def test_image_is_made_of_files_that_are_there():
    """What is copied exists and is let through to the builder: all packages of the project, but for the load tests."""
    copied = {Path(word).as_posix() for line in instructions("COPY") for word in line.split()[:-1]}
    ignore = (REPOSITORY / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    assert all((REPOSITORY / name).exists() for name in copied)
    assert copied == {line[1:] for line in ignore if line.startswith("!")}
    (installed,) = re.findall(r"^include = \[(.*)\]", PYPROJECT, re.MULTILINE)
    assert set(re.findall(r"\w+", installed)) - copied == {"loadtest"}


def test_torch_is_found():
    """The pattern by which the Dockerfile takes torch's version out of pyproject.toml finds it, and nothing else."""
    (pattern,) = re.findall(r"grep --only-matching '(.*?)'", DOCKERFILE)
    (torch,) = re.findall(pattern, PYPROJECT)
    assert f'"{torch}"' in PYPROJECT
