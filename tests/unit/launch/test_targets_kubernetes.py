"""The Kubernetes files: a golden, a schema of the fields we use, and what KubeRay's own checks refuse.

The schema is written from KubeRay 1.7 (rayjob_types.go, raycluster_types.go, utils/validation.go) and the
core types of Kubernetes. It is closed: a field that it does not know is an error, as for a strict server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from launch.cluster_config import ClusterConfig
from launch.submission import launch
from launch.targets import kubernetes
from launch.targets.request import Request, make_request
from pipeline.config import RunConfig
from pipeline.config_io import load_config, parse_config
from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
GOLDENS = Path(__file__).parent / "goldens"
IMAGE = "registry.example.org/vitline@sha256:" + "0" * 64
SMALL = {"image": IMAGE, "volume_claim": "runs"}
FULL = {
    **SMALL,
    "namespace": "vision",
    "secrets": ["mlflow"],
    "token_secret": "ray-token",
    "queue": "gpu",
    "rdma": True,
    "runtime_class": "nvidia",
    "node_selector": {"gpu": "h100"},
    "egress": [{"cidr": "10.1.0.0/16", "port": 5000}],
}


def config_of(**changes: Any) -> RunConfig:
    return load_config(ROOT / "tests/integration/small.yaml").model_copy(update=changes)


def request_of(
    settings: dict[str, Any],
    gpus: int = 0,
    nodes: int = 2,
    preflight: str = "quick",
    stop_after: str | None = None,
    **changes: Any,
) -> Request:
    cluster = ClusterConfig.model_validate({"kubernetes": settings, "preflight": preflight})
    return make_request(
        config_of(**changes),
        cluster,
        Path("/here"),
        nodes=nodes,
        gpus_per_node=gpus,
        stop_after=stop_after,
    )


REQUESTS = {
    "small": request_of(SMALL),
    "full": replace(
        request_of(FULL, gpus=8, nodes=4, preflight="off", stop_after="12h"), exclude=("gpu-3", "gpu-7")
    ),
}


def manifests(name: str) -> dict[str, Any]:
    files = kubernetes.render(REQUESTS[name]).files
    return {file: yaml.safe_load(text) for file, text in files.items() if file.endswith(".yaml")}


# ---------------------------------------------------------------- the schema


def closed(properties: dict[str, Any], required: str = "") -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def items(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
FLAG = {"type": "boolean"}
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
QUANTITY = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$"}
KEY = r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
VALUE = {"type": "string", "pattern": r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"}
LABELS = {"type": "object", "propertyNames": {"pattern": KEY}, "additionalProperties": VALUE}
SELECTOR = closed({"matchLabels": LABELS})
AMOUNTS = {"type": "object", "additionalProperties": QUANTITY}
FIELD = closed({"fieldRef": closed({"fieldPath": {"const": "spec.nodeName"}}, "fieldPath")}, "fieldRef")
ENTRY = {
    "oneOf": [
        closed({"name": TEXT, "value": {"type": "string"}}, "name value"),
        closed({"name": TEXT, "valueFrom": FIELD}, "name valueFrom"),
    ]
}
CONTAINER = closed(
    {
        "name": NAME,
        "image": TEXT,
        "imagePullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
        "workingDir": TEXT,
        "env": items(ENTRY),
        "envFrom": items(closed({"secretRef": closed({"name": NAME}, "name")}, "secretRef")),
        "resources": closed({"requests": AMOUNTS, "limits": AMOUNTS}, "requests limits"),
        "securityContext": closed(
            {
                "allowPrivilegeEscalation": {"const": False},
                "capabilities": closed({"drop": {"const": ["ALL"]}, "add": items(TEXT)}, "drop"),
            },
            "allowPrivilegeEscalation capabilities",
        ),
        "volumeMounts": items(closed({"name": NAME, "mountPath": TEXT, "readOnly": FLAG}, "name mountPath")),
    },
    "name image resources securityContext",
)
VOLUME = closed(
    {
        "name": NAME,
        "persistentVolumeClaim": closed({"claimName": NAME}, "claimName"),
        "configMap": closed({"name": NAME}, "name"),
        "emptyDir": closed({"medium": {"const": "Memory"}, "sizeLimit": QUANTITY}, "medium sizeLimit"),
    },
    "name",
)
# The API takes one value a field.
NOT_NODE = closed(
    {
        "key": {"const": "metadata.name"},
        "operator": {"const": "NotIn"},
        "values": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 1},
    },
    "key operator values",
)
AWAY = closed({"nodeSelectorTerms": items(closed({"matchFields": items(NOT_NODE)}, "matchFields"))})
APART = closed({"topologyKey": TEXT, "labelSelector": SELECTOR}, "topologyKey labelSelector")
POD = closed(
    {
        "metadata": closed({"labels": LABELS}),
        "spec": closed(
            {
                "automountServiceAccountToken": FLAG,
                "securityContext": closed(
                    {
                        "runAsNonRoot": {"const": True},
                        "runAsUser": {"type": "integer", "minimum": 1},
                        "runAsGroup": {"type": "integer", "minimum": 1},
                        "fsGroup": {"type": "integer", "minimum": 1},
                        "fsGroupChangePolicy": {"enum": ["OnRootMismatch", "Always"]},
                        "seccompProfile": closed({"type": {"const": "RuntimeDefault"}}, "type"),
                    },
                    "runAsNonRoot runAsUser runAsGroup fsGroup seccompProfile",
                ),
                "terminationGracePeriodSeconds": COUNT,
                "restartPolicy": {"enum": ["Never", "OnFailure"]},
                "runtimeClassName": NAME,
                "nodeSelector": LABELS,
                "affinity": closed(
                    {
                        "podAntiAffinity": closed(
                            {"requiredDuringSchedulingIgnoredDuringExecution": items(APART)}
                        ),
                        "nodeAffinity": closed({"requiredDuringSchedulingIgnoredDuringExecution": AWAY}),
                    }
                ),
                "containers": items(CONTAINER),
                "volumes": items(VOLUME),
            },
            "securityContext containers",
        ),
    },
    "metadata spec",
)
START = {"type": "object", "additionalProperties": {"type": "string"}}
WORKERS = closed(
    {
        "groupName": NAME,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "rayStartParams": START,
        "template": POD,
    },
    "groupName replicas minReplicas maxReplicas rayStartParams template",
)
CLUSTER = closed(
    {
        "rayVersion": TEXT,
        "authOptions": closed({"mode": {"enum": ["token", "disabled"]}, "secretName": NAME}, "mode"),
        "headGroupSpec": closed({"rayStartParams": START, "template": POD}, "template"),
        "workerGroupSpecs": items(WORKERS),
    },
    "headGroupSpec",
)
METADATA = closed({"name": NAME, "labels": LABELS, "namespace": NAME}, "name")
RAY_JOB = closed(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {**METADATA, "properties": {**METADATA["properties"], "name": {**NAME, "maxLength": 47}}},
        "spec": closed(
            {
                "entrypoint": TEXT,
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
                "shutdownAfterJobFinishes": FLAG,
                "ttlSecondsAfterFinished": COUNT,
                "activeDeadlineSeconds": {**COUNT, "minimum": 1},
                "preRunningDeadlineSeconds": {**COUNT, "minimum": 1},
                "backoffLimit": COUNT,
                "suspend": FLAG,
                "submitterConfig": closed({"backoffLimit": COUNT}),
                "submitterPodTemplate": POD,
                "rayClusterSpec": CLUSTER,
            },
            "entrypoint rayClusterSpec",
        ),
    },
    "apiVersion kind metadata spec",
)
PORT = closed({"protocol": {"enum": ["TCP", "UDP"]}, "port": {"type": "integer"}}, "port")
PEER = closed(
    {
        "podSelector": SELECTOR,
        "namespaceSelector": SELECTOR,
        "ipBlock": closed({"cidr": TEXT}, "cidr"),
    }
)
POLICY = closed(
    {
        "apiVersion": {"const": "networking.k8s.io/v1"},
        "kind": {"const": "NetworkPolicy"},
        "metadata": METADATA,
        "spec": closed(
            {
                "podSelector": SELECTOR,
                "policyTypes": {"const": ["Ingress", "Egress"]},
                "ingress": items(closed({"from": items(PEER), "ports": items(PORT)})),
                "egress": items(closed({"to": items(PEER), "ports": items(PORT)})),
            },
            "podSelector policyTypes ingress egress",
        ),
    },
    "apiVersion kind metadata spec",
)
CONFIG_MAP = closed(
    {
        "apiVersion": {"const": "v1"},
        "kind": {"const": "ConfigMap"},
        "metadata": METADATA,
        "data": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "apiVersion kind metadata data",
)
SCHEMAS = {"rayjob.yaml": RAY_JOB, "networkpolicy.yaml": POLICY, "configmap.yaml": CONFIG_MAP}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("file", SCHEMAS)
def test_files_have_the_fields_of_their_kind(name: str, file: str) -> None:
    jsonschema.Draft202012Validator(SCHEMAS[file]).validate(manifests(name)[file])


def test_the_schema_would_see_a_wrong_field() -> None:
    job = manifests("small")["rayjob.yaml"]
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"] = 0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(RAY_JOB).validate(job)


@pytest.mark.parametrize("name", REQUESTS)
def test_the_api_takes_pods_policy_and_configuration(name: str) -> None:
    """The API's own schema, strict; RayJob is KubeRay's kind, so its pods are looked at one by one."""
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    found = manifests(name)
    spec = found["rayjob.yaml"]["spec"]
    templates = [
        spec["submitterPodTemplate"],
        spec["rayClusterSpec"]["headGroupSpec"]["template"],
        *(group["template"] for group in spec["rayClusterSpec"]["workerGroupSpecs"]),
    ]
    pods = [{"apiVersion": "v1", "kind": "Pod", **template} for template in templates]
    for manifest in (*pods, found["networkpolicy.yaml"], found["configmap.yaml"]):
        schemas.validate(manifest, schemas.latest_version(), strict=True)
    pods[1]["spec"]["containers"][0]["env"][-1]["valueFrom"]["nodeRef"] = {}
    with pytest.raises(schemas.ValidationError, match="nodeRef"):
        schemas.validate(pods[1], schemas.latest_version(), strict=True)


# ---------------------------------------------------------------- goldens, and what goldens do not say


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("file", ["kustomization.yaml", "rayjob.yaml", "networkpolicy.yaml", "README.txt"])
def test_rendering_equals_its_golden(name: str, file: str) -> None:
    text = kubernetes.render(REQUESTS[name]).files[file]
    golden = GOLDENS / f"kubernetes_{name}-{file}"
    if os.environ.get("VITLINE_WRITE_GOLDENS"):
        golden.write_text(text)
    assert golden.read_text() == text
    assert "&id" not in text  # anchors are hard to read and to patch


def test_the_configuration_travels_whole() -> None:
    text = manifests("small")["configmap.yaml"]["data"]["config.yaml"]
    assert parse_config(yaml.safe_load(text), "configmap") == REQUESTS["small"].config


@pytest.mark.parametrize("name", REQUESTS)
def test_rules_of_the_operator_hold(name: str) -> None:
    spec = manifests(name)["rayjob.yaml"]["spec"]
    assert spec["shutdownAfterJobFinishes"]  # needed by suspend and by a time to live
    assert "clusterSelector" not in spec
    workers = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for template in (spec["rayClusterSpec"]["headGroupSpec"]["template"], workers["template"]):
        resources = template["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]


def test_only_the_driver_gets_the_secrets() -> None:
    spec = manifests("full")["rayjob.yaml"]["spec"]
    cluster = spec["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    submitter = spec["submitterPodTemplate"]["spec"]["containers"][0]
    assert head["envFrom"] == [{"secretRef": {"name": "mlflow"}}]
    assert "envFrom" not in worker
    assert "envFrom" not in submitter


def test_kustomize_builds_it(tmp_path: Path) -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    for file, text in kubernetes.render(REQUESTS["full"]).files.items():
        (tmp_path / file).write_text(text)
    built = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=True
    )
    kinds = {item["kind"]: item for item in yaml.safe_load_all(built.stdout)}
    assert set(kinds) == {"ConfigMap", "RayJob", "NetworkPolicy"}
    assert {item["metadata"]["namespace"] for item in kinds.values()} == {"vision"}


@pytest.mark.parametrize(
    "name, expected", [("Run.7_b", "vitline-run-7-b"), ("a" * 34, "vitline-" + "a" * 34)]
)
def test_names_become_those_of_kubernetes(name: str, expected: str) -> None:
    assert kubernetes.base_name(request_of(SMALL, name=name)) == expected


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(UserError, match="43 characters"):
        kubernetes.render(request_of(SMALL, name="a" * 35))


@pytest.mark.parametrize("missing", ["image", "volume_claim"])
def test_what_must_be_named_is_asked_for(missing: str) -> None:
    settings = {key: value for key, value in SMALL.items() if key != missing}
    with pytest.raises(UserError, match=f"kubernetes.{missing} is not set"):
        kubernetes.render(request_of(settings))


def test_a_run_outside_the_volume_is_refused() -> None:
    with pytest.raises(UserError, match="root is /scratch, and the volume is mounted at /vitline"):
        kubernetes.render(request_of(SMALL, root="/scratch"))
    assert kubernetes.render(request_of(SMALL, root="/vitline/runs"))


def test_a_tag_is_taken_with_a_note() -> None:
    notes = kubernetes.render(request_of({**SMALL, "image": "vitline:1.0"})).notes
    assert "use its digest" in notes[0]


# ---------------------------------------------------------------- submitting


def job(number: int, state: str) -> dict[str, Any]:
    return {"metadata": {"name": f"r-a{number}"}, "status": {"jobDeploymentStatus": state}}


@pytest.mark.parametrize(
    "jobs, chosen",
    [
        ([], (1, False)),
        ([job(1, "Running")], (1, True)),
        ([job(1, "Failed")], (2, False)),
        ([job(9, "Complete"), job(10, "Initializing")], (10, True)),
        ([{"metadata": {"name": "r-a1"}}], (1, True)),  # not yet seen by the operator
        ([{"metadata": {"name": "other-a5"}}], (1, False)),
    ],
)
def test_a_living_job_is_left_alone(jobs: list[dict[str, Any]], chosen: tuple[int, bool]) -> None:
    assert kubernetes.choose_attempt(jobs, "r") == chosen


def test_submit_numbers_the_next_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "kubectl"
    tool.parent.mkdir()
    log = tmp_path / "log"
    listing = (
        '{"items": [{"metadata": {"name": "vitline-small-a1"}, "status": {"jobDeploymentStatus": "Failed"}}]}'
    )
    tool.write_text(
        f'#!/bin/sh\necho "$*" >>{log}\ncase "$*" in *get*) echo \'{listing}\';; *) echo created;; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    cluster = ClusterConfig.model_validate({"kubernetes": SMALL})
    request = make_request(config_of(), cluster, tmp_path, nodes=2, gpus_per_node=0)
    code = launch(
        "kubernetes", request, render_only=False, out=None, detach=False, again="AGAIN", as_json=True
    )
    assert code == 0
    applied = yaml.safe_load((request.launch / "rayjob.yaml").read_text())
    assert applied["metadata"]["name"] == "vitline-small-a2"
    assert log.read_text().splitlines()[-1] == f"apply -k {request.launch}"
