"""Checks the manifest against KubeRay's own schema, without a Kubernetes cluster."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from pipeline.cluster.kubernetes import GRACE_S, RAY_SETTINGS, USER, RayJob, to_manifest
from pipeline.cluster.resources import Node
from pipeline.cluster.volume import VOLUME
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(Path(__file__).with_name("rayjob_schema.json").read_text())
CONFIG = "name: x\nnotes: 'two\n\n  lines'\n"
ON_GPUS = RayJob("vit-s16", "registry/minivit:gpu", CONFIG, "work", 2, Node("", 96, 8), "512Gi", "2.60.0")
ON_CPUS = dataclasses.replace(ON_GPUS, pod=Node("", 4, 0), namespace="ml", queue="team", secret="stores")


def loaded(job: RayJob) -> tuple[dict[str, Any], dict[str, Any]]:
    config, ray_job = yaml.safe_load_all(to_manifest(job.documents()))
    return config, ray_job


def templates(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = spec["rayClusterSpec"]
    [workers] = cluster["workerGroupSpecs"]
    found = {"head": cluster["headGroupSpec"]["template"], "worker": workers["template"]}
    return {name: pod["spec"] for name, pod in (found | {"submitter": spec["submitterPodTemplate"]}).items()}


@pytest.mark.parametrize("job", [ON_GPUS, ON_CPUS], ids=["GPUs", "CPUs"])
def test_kuberay_accepts_every_field(job: RayJob) -> None:
    _, ray_job = loaded(job)
    assert (ray_job["apiVersion"], ray_job["kind"]) == ("ray.io/v1", "RayJob")
    errors = [
        f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(ray_job["spec"])
    ]
    assert not errors


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["entrypoints"], "minivit"),
        (["backoffLimit"], "3"),
        (["rayClusterSpec", "authOptions", "mode"], "password"),
        (["rayClusterSpec", "headGroupSpec", "template", "spec", "containers"], [{"image": "a"}]),
        (["rayClusterSpec", "headGroupSpec", "rayStartParams"], {"num-cpus": 0}),
    ],
)
def test_the_schema_refuses_what_kuberay_would(path: list[str], value: Any) -> None:
    _, ray_job = loaded(ON_GPUS)
    *parents, last = path
    node = ray_job["spec"]
    for name in parents:
        node = node[name]
    node[last] = value
    assert list(Draft202012Validator(SCHEMA).iter_errors(ray_job["spec"]))


def test_the_config_travels_with_the_job_unchanged() -> None:
    config, ray_job = loaded(ON_CPUS)
    assert config["data"] == {"pipeline.yaml": CONFIG}
    head = templates(ray_job["spec"])["head"]
    [mount] = [mount for mount in head["containers"][0]["volumeMounts"] if mount["name"] == "config"]
    assert ray_job["spec"]["entrypoint"] == f"minivit run {mount['mountPath']}/pipeline.yaml"
    [volume] = [volume for volume in head["volumes"] if volume["name"] == "config"]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    assert {found["metadata"]["namespace"] for found in (config, ray_job)} == {"ml"}


def test_pods_run_unprivileged_as_the_images_user() -> None:
    [user] = re.findall(r"^USER (\d+)$", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert int(user) == USER
    for pod in templates(loaded(ON_GPUS)[1]["spec"]).values():
        context = pod["securityContext"]
        assert context["runAsNonRoot"]
        assert (context["runAsUser"], context["fsGroup"]) == (USER, USER)
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_pods_share_a_volume_where_the_images_working_folder_is() -> None:
    assert f"WORKDIR {VOLUME}\n" in (ROOT / "docker" / "Dockerfile").read_text()
    spec = loaded(ON_GPUS)[1]["spec"]
    for name in ("head", "worker"):
        pod = templates(spec)[name]
        [container] = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert container["workingDir"] == mounts["workspace"] == VOLUME
        assert volumes["workspace"]["persistentVolumeClaim"] == {"claimName": "work"}
        assert mounts["shared-memory"] == "/dev/shm"
        assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize(("job", "gpus"), [(ON_GPUS, "8"), (ON_CPUS, None)], ids=["GPUs", "CPUs"])
def test_workers_get_what_they_ask_for_and_the_head_no_rank(job: RayJob, gpus: str | None) -> None:
    spec = loaded(job)[1]["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["workerGroupSpecs"][0]["replicas"] == 2
    [container] = templates(spec)["worker"]["containers"]
    amounts = container["resources"]["limits"]
    assert amounts == container["resources"]["requests"]
    assert (amounts["cpu"], amounts.get("nvidia.com/gpu"), amounts["memory"]) == (str(job.pod.cpus), gpus, "512Gi")


def test_a_pod_that_ends_lets_the_run_commit() -> None:
    for name in ("head", "worker"):
        pod = templates(loaded(ON_GPUS)[1]["spec"])[name]
        command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command == ["python", "-P", "-m", "pipeline.cluster.leave", str(GRACE_S)]
        assert pod["terminationGracePeriodSeconds"] > GRACE_S
    assert loaded(ON_GPUS)[1]["spec"]["backoffLimit"] > 0


def test_only_kueue_starts_a_job_of_a_queue() -> None:
    _, queued = loaded(ON_CPUS)
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert queued["spec"]["suspend"] is True
    assert queued["spec"]["shutdownAfterJobFinishes"] is True  # KubeRay suspends no other
    _, at_once = loaded(ON_GPUS)
    assert "suspend" not in at_once["spec"]
    assert "kueue.x-k8s.io/queue-name" not in at_once["metadata"]["labels"]


def test_credentials_are_named_but_not_held() -> None:
    head = templates(loaded(ON_CPUS)[1]["spec"])["head"]["containers"][0]
    assert head["envFrom"] == [{"secretRef": {"name": "stores"}}]
    assert loaded(ON_CPUS)[1]["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_ray_has_the_settings_of_the_other_launchers() -> None:
    lines = (ROOT / "launch" / "ray.env").read_text().splitlines()
    assert dict(line.split("=") for line in lines if line and not line.startswith("#")) == RAY_SETTINGS


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "ViT_S16"}, r"^--name: found 'ViT_S16', expected at most 47 lower-case letters, digits and '-'"),
        ({"name": "16-vit"}, r"^--name: found '16-vit'"),
        ({"name": "a" * 48}, r"^--name: found 'a{48}'"),
        ({"claim": "My Claim"}, r"^--claim: found 'My Claim', expected a Kubernetes object name"),
        ({"namespace": "-ml"}, r"^--namespace: found '-ml'"),
        ({"queue": ""}, r"^--queue: found ''"),
        ({"secret": "A"}, r"^--secret: found 'A'"),
        ({"memory": "64 GB"}, r"^--memory: found '64 GB', expected a Kubernetes quantity such as 64Gi"),
        ({"image": "a b"}, r"^--image: found 'a b', expected an image name"),
    ],
)
def test_what_kubernetes_would_refuse_is_one_sentence(change: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as error:
        dataclasses.replace(ON_GPUS, **change).documents()
    assert "\n" not in str(error.value)
