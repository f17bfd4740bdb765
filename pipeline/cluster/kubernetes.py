"""The Kubernetes manifest of a run: a ConfigMap with the config, and a KubeRay RayJob (`ray.io/v1`) that runs it.

Written against KubeRay's API, https://github.com/ray-project/kuberay/tree/v1.7.0/ray-operator/apis/ray/v1, and Kueue's
label for RayJobs, https://kueue.sigs.k8s.io/docs/tasks/run/rayjobs/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.cluster.resources import Node
from pipeline.cluster.volume import VOLUME
from pipeline.errors import ConfigError

LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035
OBJECT = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")  # RFC 1123
QUANTITY = re.compile(r"([0-9]+)([KMGT]i?)?")
MAX_JOB_NAME = 47  # KubeRay appends to it
USER = 10001  # of docker/Dockerfile
CONFIG_FOLDER, CONFIG_FILE = "/etc/minivit", "pipeline.yaml"
GRACE_S = 300  # to finish the current step and commit a checkpoint
RETRIES = 3
HEAD_CPUS, HEAD_MEMORY = 2, "8Gi"  # Ray's own processes take 1.2 GB; the rest is for exporting a model
SUBMITTER_CPUS, SUBMITTER_MEMORY = "500m", "1Gi"  # KubeRay's own figures
LEAVE = ["python", "-P", "-m", "pipeline.cluster.leave", str(GRACE_S)]  # -P: import nothing from the volume
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

# As in launch/ray.env: Ray notices a lost pod within about five seconds.
RAY_SETTINGS = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class RayJob:
    """The parameters of the manifest. `pod` is the size of a worker pod; `ray_version` must match the image."""

    name: str
    image: str
    config: str  # the YAML of the pipeline
    claim: str
    pods: int
    pod: Node
    memory: str
    ray_version: str
    namespace: str | None = None
    queue: str | None = None
    secret: str | None = None

    def check(self) -> None:
        """Raise `ConfigError` for the first name or quantity that Kubernetes would reject."""
        if not LABEL.fullmatch(self.name) or len(self.name) > MAX_JOB_NAME:
            raise ConfigError(
                f"--name: found {self.name!r}, expected at most {MAX_JOB_NAME} lower-case letters, digits and '-', "
                "starting with a letter; give another --name (default: the config's name)"
            )
        for option in ("claim", "namespace", "queue", "secret"):
            value = getattr(self, option)
            if value is not None and (not OBJECT.fullmatch(value) or len(value) > 63):
                raise ConfigError(
                    f"--{option}: found {value!r}, expected a Kubernetes object name of lower-case letters, digits, "
                    "'-' and '.'"
                )
        if not QUANTITY.fullmatch(self.memory):
            raise ConfigError(f"--memory: found {self.memory!r}, expected a Kubernetes quantity such as 64Gi")
        if not self.image or any(map(str.isspace, self.image)):
            raise ConfigError(f"--image: found {self.image!r}, expected an image name such as registry/minivit:gpu")

    def documents(self) -> list[dict[str, Any]]:
        """The manifest's objects, in order of creation. Raises `ConfigError`; see `check`."""
        self.check()
        config = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": self._metadata(),
            "data": {CONFIG_FILE: self.config},
        }
        metadata, spec = self._metadata(), self._spec()
        if self.queue:
            metadata["labels"][QUEUE_LABEL] = self.queue
            spec["suspend"] = True  # until Kueue admits it
        return [config, {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}]

    def _metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = {"name": self.name, "labels": {"app.kubernetes.io/name": "minivit"}}
        return metadata | ({"namespace": self.namespace} if self.namespace else {})

    def _spec(self) -> dict[str, Any]:
        return {
            # The submitter's shell parses it, too: keep it a plain command, without quotes or operators.
            "entrypoint": f"minivit run {CONFIG_FOLDER}/{CONFIG_FILE}",
            "submissionMode": "K8sJobMode",
            "backoffLimit": RETRIES,
            "shutdownAfterJobFinishes": True,
            "submitterPodTemplate": self._submitter(),
            "rayClusterSpec": {
                "rayVersion": self.ray_version,
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": self._head()},
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": self.pods,
                        "minReplicas": self.pods,
                        "maxReplicas": self.pods,
                        "rayStartParams": {},
                        "template": self._worker(),
                    }
                ],
            },
        }

    def _head(self) -> dict[str, Any]:
        """The head pod runs the pipeline's driver and Ray's own processes, but no ranks."""
        container = self._container("ray-head", {"cpu": str(HEAD_CPUS), "memory": HEAD_MEMORY})
        container["volumeMounts"].append({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True})
        if self.secret:
            container["envFrom"] = [{"secretRef": {"name": self.secret}}]
        template = self._pod(container, HEAD_MEMORY)
        template["spec"]["volumes"].append({"name": "config", "configMap": {"name": self.name}})
        return template

    def _worker(self) -> dict[str, Any]:
        amounts = {"cpu": str(self.pod.cpus), "memory": self.memory}
        if self.pod.gpus:
            amounts["nvidia.com/gpu"] = str(self.pod.gpus)
        return self._pod(self._container("ray-worker", amounts), self.memory)

    def _submitter(self) -> dict[str, Any]:
        """The pod in which KubeRay submits the job and prints its log."""
        amounts = {"cpu": SUBMITTER_CPUS, "memory": SUBMITTER_MEMORY}
        container = {
            "name": "ray-job-submitter",
            "image": self.image,
            "resources": {"requests": amounts, "limits": amounts},
            "securityContext": UNPRIVILEGED,
        }
        return {"spec": {"restartPolicy": "Never", "containers": [container], **OF_A_POD}}

    def _container(self, name: str, amounts: dict[str, str]) -> dict[str, Any]:
        return {
            "name": name,
            "image": self.image,
            "workingDir": VOLUME,
            "env": [{"name": key, "value": value} for key, value in RAY_SETTINGS.items()],
            "resources": {"requests": amounts, "limits": amounts},
            "securityContext": UNPRIVILEGED,
            "lifecycle": {"preStop": {"exec": {"command": LEAVE}}},
            "volumeMounts": [
                {"name": "workspace", "mountPath": VOLUME},
                {"name": "shared-memory", "mountPath": "/dev/shm"},
            ],
        }

    def _pod(self, container: dict[str, Any], memory: str) -> dict[str, Any]:
        return {
            "spec": {
                "terminationGracePeriodSeconds": GRACE_S + 30,
                "containers": [container],
                "volumes": [
                    {"name": "workspace", "persistentVolumeClaim": {"claimName": self.claim}},
                    {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": memory}},
                ],
                **OF_A_POD,
            }
        }


UNPRIVILEGED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
OF_A_POD = {
    "automountServiceAccountToken": False,
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}


class _ManifestDumper(yaml.SafeDumper):
    """Writes multi-line text as a block, and shared objects in full instead of as aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _ManifestDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_ManifestDumper.add_representer(str, _text)


def to_manifest(documents: list[dict[str, Any]]) -> str:
    """The manifest as YAML, for `kubectl apply -f`."""
    return yaml.dump_all(documents, Dumper=_ManifestDumper, sort_keys=False, explicit_start=True, width=120)
