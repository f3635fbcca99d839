"""Kubernetes: one KubeRay RayJob, a Ray cluster of its own that goes when the run has ended.

    kustomization.yaml   names the rest: `kubectl apply -k .`, or for a tool that watches a repository
    configmap.yaml       the resolved configuration, without secrets
    rayjob.yaml          head without training, N workers, one a host
    networkpolicy.yaml   who may talk to the pods, and whom they may reach
    README.txt           what must exist beforehand

Fields after KubeRay 1.7 (rayjob_types.go, raycluster_types.go, utils/validation.go). A retry of KubeRay's
is a new cluster: it continues because the run's directory is on the volume. kubectl is called as a program.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from launch.targets.kubernetes_pods import CONFIG_DIR, labels, pod, submitter
from launch.targets.request import CONFIG, Rendered, Request, Submission, config_text
from pipeline.errors import EnvironmentUnfit, UserError
from pipeline.rundir import write_atomic

MAIN = "rayjob.yaml"
# KubeRay makes longer names of it for services and pods; DNS-1035.
_NAME_MAX = 47
_NAME = re.compile(r"^[a-z]([a-z0-9-]*[a-z0-9])?$")
# What a cluster's nodes and stores are reached by; more under kubernetes.egress.
_HTTPS_PORTS = (443, 6443)
_OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}


def render(request: Request, attempt: int = 1) -> Rendered:
    """All files; `attempt` numbers the RayJobs of one run, because one that ended is not started again.

    Raises:
        UserError: no image or volume is named, or the run's name cannot be one of Kubernetes.
    """
    base = base_name(request)
    _check(request)
    manifests = {
        "configmap.yaml": _config_map(request, base),
        MAIN: _ray_job(request, base, attempt),
        "networkpolicy.yaml": _network_policy(request, base),
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": request.cluster.kubernetes.namespace,
        "resources": list(manifests),
    }
    files = {
        "kustomization.yaml": _dump(kustomization),
        **{name: _dump(manifest) for name, manifest in manifests.items()},
        "README.txt": _readme(request, f"{base}-a{attempt}"),
    }
    image = str(request.cluster.kubernetes.image)
    notes = (
        () if "@sha256:" in image else (f"{image} is a tag: pods may get different builds; use its digest",)
    )
    return Rendered(files, MAIN, notes)


def base_name(request: Request) -> str:
    """The run's name as one of Kubernetes, with room for the attempt."""
    name = re.sub(r"[^a-z0-9]+", "-", f"vitline-{request.config.name}".lower()).strip("-")
    limit = _NAME_MAX - len("-a999")
    if len(name) > limit or not _NAME.match(name):
        raise UserError(
            f"the run's name {request.config.name!r} makes {name!r}, {len(name)} characters",
            f"at most {limit} characters, for KubeRay's own names go on from there",
            "choose a shorter name: name=...",
        )
    return name


def _check(request: Request) -> None:
    kubernetes = request.cluster.kubernetes
    for value, key, what in (
        (kubernetes.image, "image", "an image with vitline in it (Dockerfile)"),
        (kubernetes.volume_claim, "volume_claim", "a claim that all pods mount, for the run's directory"),
    ):
        if value is None:
            raise UserError(f"kubernetes.{key} is not set", what, "name it in the cluster file")
    root = PurePosixPath(request.config.root)
    if root.is_absolute() and not root.is_relative_to(kubernetes.mount):
        raise UserError(
            f"root is {root}, and the volume is mounted at {kubernetes.mount}",
            "a run directory on the volume, which outlives the pods",
            "give root a relative path, or set kubernetes.mount",
        )


class _PlainDumper(yaml.SafeDumper):
    """Writes what stands twice twice: anchors are hard to read and to patch."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _dump(value: dict[str, Any]) -> str:
    return yaml.dump(value, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=110)


def _config_map(request: Request, base: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{base}-config", "labels": labels(base)},
        "data": {CONFIG: config_text(request, MAIN)},
    }


def _ray_job(request: Request, base: str, attempt: int) -> dict[str, Any]:
    kubernetes = request.cluster.kubernetes
    queue = {"kueue.x-k8s.io/queue-name": kubernetes.queue} if kubernetes.queue else {}
    driver = ["vitline", "run", f"{CONFIG_DIR}/{CONFIG}", "--address", "auto", *request.options]
    spec = {
        # `env` sets the directory without a shell.
        "entrypoint": shlex.join(["env", f"--chdir={kubernetes.mount}", *driver]),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": kubernetes.keep_s,
        "activeDeadlineSeconds": kubernetes.deadline_s,
        "preRunningDeadlineSeconds": kubernetes.start_deadline_s,
        "backoffLimit": kubernetes.retries,
        # Kueue admits all pods of the job, or none.
        **({"suspend": True} if kubernetes.queue else {}),
        "submitterConfig": {"backoffLimit": 2},
        "submitterPodTemplate": submitter(request, base),
        "rayClusterSpec": _ray_cluster(request, base),
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": f"{base}-a{attempt}", "labels": {**labels(base), **queue}},
        "spec": spec,
    }


def _ray_cluster(request: Request, base: str) -> dict[str, Any]:
    kubernetes = request.cluster.kubernetes
    secret = {"secretName": kubernetes.token_secret} if kubernetes.token_secret else {}
    return {
        "rayVersion": kubernetes.ray_version,
        "authOptions": {"mode": "token", **secret},
        "headGroupSpec": {
            # No training lands beside the driver and Ray's own services.
            "rayStartParams": {"num-cpus": "0"},
            "template": pod(request, base, head=True),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                # All three equal: the gang is whole or not there.
                "replicas": request.nodes,
                "minReplicas": request.nodes,
                "maxReplicas": request.nodes,
                "rayStartParams": {},
                "template": pod(request, base, head=False),
            }
        ],
    }


def _network_policy(request: Request, base: str) -> dict[str, Any]:
    own = {"podSelector": {"matchLabels": labels(base)}}
    # It asks the head's dashboard how the job stands, from whatever namespace it was installed in.
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": _OPERATOR}}
    dns = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    more = [
        {"to": [{"ipBlock": {"cidr": rule.cidr}}], "ports": [{"protocol": "TCP", "port": rule.port}]}
        for rule in request.cluster.kubernetes.egress
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": base, "labels": labels(base)},
        "spec": {
            "podSelector": {"matchLabels": labels(base)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [own]},
                {"from": [operator], "ports": [{"protocol": "TCP", "port": 8265}]},
            ],
            "egress": [
                {"to": [own]},
                {"ports": dns},
                {"ports": [{"protocol": "TCP", "port": port} for port in _HTTPS_PORTS]},
                *more,
            ],
        },
    }


def _readme(request: Request, name: str) -> str:
    kubernetes = request.cluster.kubernetes
    needs = [
        "the KubeRay operator, 1.7 or newer",
        f"PersistentVolumeClaim {kubernetes.volume_claim} (ReadWriteMany), namespace {kubernetes.namespace}",
        f"image {kubernetes.image}, which the nodes can pull",
        *[f"Secret {secret}, whose keys become variables of the driver" for secret in kubernetes.secrets],
        *([f"Secret {kubernetes.token_secret} with Ray's token"] if kubernetes.token_secret else []),
        *([f"LocalQueue {kubernetes.queue} of Kueue"] if kubernetes.queue else []),
    ]
    commands = [("submit", "kubectl apply -k ."), *_commands(kubernetes.namespace, name)]
    return (
        f"RayJob {name}, written by `vitline launch kubernetes`.\n\nMust exist:\n"
        + "".join(f"- {need}\n" for need in needs)
        + "\n"
        + "".join(f"{word + ':':<8} {command}\n" for word, command in commands)
    )


def _commands(namespace: str, name: str) -> tuple[tuple[str, str], ...]:
    kubectl = f"kubectl --namespace {namespace}"
    return (
        ("log", f"{kubectl} logs --follow job/{name}"),
        ("state", f"{kubectl} get rayjob {name}"),
        ("why", f"{kubectl} describe rayjob {name}"),
        ("stop", f"{kubectl} delete rayjob {name}"),
    )


# ---------------------------------------------------------------- submit


def choose_attempt(jobs: list[dict[str, Any]], base: str) -> tuple[int, bool]:
    """The number of the RayJob to use, and whether it is there and alive already."""
    pattern = re.compile(rf"^{re.escape(base)}-a(\d+)$")
    states = {
        int(match.group(1)): job.get("status", {}).get("jobDeploymentStatus", "")
        for job in jobs
        if (match := pattern.match(job["metadata"]["name"]))
    }
    if not states:
        return 1, False
    newest = max(states)
    ended = states[newest] in ("Complete", "Failed")
    return (newest + 1, False) if ended else (newest, True)


def submit(request: Request, directory: Path, detach: bool) -> Submission:
    """Apply the files with kubectl; a RayJob of this run that is alive is left alone.

    Raises:
        EnvironmentUnfit: no kubectl here, or the cluster refuses; the message says what to type elsewhere.
    """
    namespace = request.cluster.kubernetes.namespace
    base = base_name(request)
    argv = ("kubectl", "apply", "-k", str(directory))
    if shutil.which("kubectl") is None:
        raise EnvironmentUnfit(
            f"no kubectl on this machine; {directory / MAIN} is written",
            "a machine with kubectl and access to the cluster",
            f"there, type: {shlex.join(argv)}",
        )
    selector = ",".join(f"{key}={value}" for key, value in labels(base).items())
    listing = ("kubectl", "--namespace", namespace, "get", "rayjobs", "--selector", selector, "--output=json")
    attempt, alive = choose_attempt(json.loads(_kubectl(listing, directory))["items"], base)
    name = f"{base}-a{attempt}"
    if alive:
        return Submission(argv, {"job": name, "attached": True}, _commands(namespace, name))
    for file, text in render(request, attempt).files.items():
        write_atomic(directory / file, text.encode())
    answer = {"job": name, "attached": False, "stdout": _kubectl(argv, directory)}
    return Submission(argv, answer, _commands(namespace, name))


def _kubectl(argv: tuple[str, ...], directory: Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        raise EnvironmentUnfit(
            f"{shlex.join(argv)} said: {done.stderr.strip().splitlines()[-1]}; {directory / MAIN} is written",
            "a cluster with the KubeRay operator, and the right to create RayJobs",
            f"check `kubectl config current-context`; or elsewhere: kubectl apply -k {directory}",
        )
    return done.stdout
