"""The pods of a RayJob: head, worker and submitter, none of them with more rights than it needs."""

from __future__ import annotations

from typing import Any

from launch.targets.request import Request
from pipeline.cluster import RAY_ENVIRONMENT

CONFIG_DIR = "/etc/vitline"
# Its host's name, in every pod of Ray: the pod's own name says nothing about it.
NODE_VARIABLE = "VITLINE_NODE"
# What Ray's own processes read; the rest is the driver's.
_RAY = {
    name: RAY_ENVIRONMENT[name]
    for name in (
        "RAY_USAGE_STATS_ENABLED",
        "RAY_health_check_initial_delay_ms",
        "RAY_health_check_period_ms",
        "RAY_health_check_timeout_ms",
        "RAY_health_check_failure_threshold",
        "RAY_idle_worker_killing_time_threshold_ms",
    )
}


def labels(base: str) -> dict[str, str]:
    """On everything that belongs to the run; KubeRay has labels of its own, which these do not touch."""
    return {"vitline/run": base}


def pod(request: Request, base: str, *, head: bool) -> dict[str, Any]:
    """Template of the head's pod or of a worker's."""
    kubernetes = request.cluster.kubernetes
    shared = "1Gi" if head else kubernetes.shared_memory
    container: dict[str, Any] = {
        "name": "ray-head" if head else "ray-worker",
        **_container(request),
        "workingDir": kubernetes.mount,
        "env": [
            *({"name": name, "value": value} for name, value in _environment(request).items()),
            {"name": NODE_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        "resources": _resources(request, head=head),
        "volumeMounts": [
            {"name": "runs", "mountPath": kubernetes.mount},
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    if head and kubernetes.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in kubernetes.secrets]
    spec = {
        **_pod_security(kubernetes.uid),
        "terminationGracePeriodSeconds": kubernetes.grace_s,
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": kubernetes.volume_claim}},
            {"name": "config", "configMap": {"name": f"{base}-config"}},
            # Memory-backed, and counted against the container's limit.
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": shared}},
        ],
        **({} if head else _placement(request, base)),
    }
    return {
        "metadata": {"labels": {**labels(base), "vitline/role": "head" if head else "worker"}},
        "spec": spec,
    }


def submitter(request: Request, base: str) -> dict[str, Any]:
    """Template of the pod in which KubeRay runs `ray job submit`."""
    small = {"cpu": "500m", "memory": "1Gi"}
    container = {
        "name": "ray-job-submitter",
        **_container(request),
        "resources": {"requests": small, "limits": dict(small)},
    }
    spec = {
        **_pod_security(request.cluster.kubernetes.uid),
        "restartPolicy": "Never",
        "containers": [container],
    }
    return {"metadata": {"labels": {**labels(base), "vitline/role": "submitter"}}, "spec": spec}


def _container(request: Request) -> dict[str, Any]:
    kubernetes = request.cluster.kubernetes
    capabilities = {"drop": ["ALL"], **({"add": ["IPC_LOCK"]} if kubernetes.rdma else {})}
    return {
        "image": kubernetes.image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": capabilities},
    }


def _pod_security(uid: int) -> dict[str, Any]:
    return {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": uid,
            "runAsGroup": uid,
            "fsGroup": uid,
            # Else every file of a large volume gets a new owner at each start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _environment(request: Request) -> dict[str, str]:
    return {**_RAY, "NCCL_DEBUG": "WARN", **request.cluster.environment}


def _resources(request: Request, *, head: bool) -> dict[str, Any]:
    """Requests equal limits: the pod is of the class that is evicted last."""
    kubernetes = request.cluster.kubernetes
    amounts: dict[str, Any] = (
        {"cpu": str(kubernetes.head_cpus), "memory": kubernetes.head_memory}
        if head
        else {"cpu": str(kubernetes.cpus), "memory": kubernetes.memory}
    )
    if request.gpus_per_node and not head:
        amounts["nvidia.com/gpu"] = str(request.gpus_per_node)
    return {"requests": amounts, "limits": dict(amounts)}


def _placement(request: Request, base: str) -> dict[str, Any]:
    """One worker a host, on the hosts that were asked for."""
    kubernetes = request.cluster.kubernetes
    apart = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {**labels(base), "vitline/role": "worker"}},
    }
    affinity: dict[str, Any] = {
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}
    }
    if request.exclude:
        # Of a node's name Kubernetes takes one value a field; all of the fields must hold.
        fields = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in request.exclude]
        affinity["nodeAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": fields}]}
        }
    placement: dict[str, Any] = {"affinity": affinity}
    if kubernetes.node_selector:
        placement["nodeSelector"] = dict(kubernetes.node_selector)
    if kubernetes.runtime_class:
        placement["runtimeClassName"] = kubernetes.runtime_class
    return placement
