"""The part of KubeRay's schema of a RayJob that manifests use, cut out of its definition of custom resources.

Usage: python tests/cluster/rayjob_schema.py ray.io_rayjobs.yaml VERSION MANIFEST... > tests/cluster/rayjob_schema.json

ray.io_rayjobs.yaml is helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml at the tag VERSION of
https://github.com/ray-project/kuberay (Apache License 2.0). A manifest that uses another field of it is refused until
the schema is cut out again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

KEPT = ("type", "format", "enum", "minimum", "pattern", "required", "anyOf", "minItems")


def cut(schema: dict[str, Any], used: list[Any]) -> dict[str, Any]:
    """A schema with the fields that occur in any of the `used` values; all other fields are refused."""
    small = {name: schema[name] for name in KEPT if name in schema}
    if schema.get("x-kubernetes-int-or-string"):
        small.pop("type", None)
    if "properties" in schema:
        names = dict.fromkeys(name for value in used for name in value)
        small["properties"] = {
            name: cut(schema["properties"][name], [value[name] for value in used if name in value]) for name in names
        }
        small["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        values = [item for value in used for item in value.values()]
        small["additionalProperties"] = cut(schema["additionalProperties"], values)
    elif "items" in schema:
        small["items"] = cut(schema["items"], [item for value in used for item in value])
    return small


def main(definition: str, version: str, *manifests: str) -> None:
    [served] = [v for v in yaml.safe_load(Path(definition).read_text())["spec"]["versions"] if v["name"] == "v1"]
    jobs = [job for path in manifests for job in yaml.safe_load_all(Path(path).read_text()) if job["kind"] == "RayJob"]
    schema = cut(served["schema"]["openAPIV3Schema"]["properties"]["spec"], [job["spec"] for job in jobs])
    source = f"KubeRay {version}, helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml, Apache License 2.0"
    print(json.dumps({"$comment": f"Cut by rayjob_schema.py out of {source}", **schema}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
