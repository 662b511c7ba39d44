"""Manifests for Kubernetes: a Deployment (one node), a LeaderWorkerSet (several), a JobSet (what
ends). Rendered from the plan; nothing is applied.

Fields: Kubernetes' API reference; leaderworkerset.sigs.k8s.io; jobset.sigs.k8s.io.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import yaml  # type: ignore[import-untyped]

from launch.job_command import JobCommand
from launch.job_resources import Resources
from launch.schema import JobKind, KubernetesKeys

Json = dict[str, Any]
_RENDEZVOUS_PORT = 29500
_LEAVING_SECONDS = 30
"""Between the end of the drain and the kubelet's own end of a pod."""
_NAME_LENGTH = 40
_USER = 1000


@dataclass(frozen=True)
class Deployed:
    job: JobKind
    model: str
    command: JobCommand
    needed: Resources
    keys: KubernetesKeys
    port: int
    drain_seconds: float

    @property
    def name(self) -> str:
        plain = re.sub(r"[^a-z0-9]+", "-", f"tessera-{self.job.value}-{self.model}".lower())
        return plain[:_NAME_LENGTH].strip("-")

    @property
    def serves(self) -> bool:
        return self.job is JobKind.serve


class _Plain(yaml.SafeDumper):  # type: ignore[misc]
    """Says equal things twice instead of pointing at the first."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def manifests(deployed: Deployed) -> str:
    """YAML documents: the workload, and a Service in front of a server."""
    if not deployed.serves:
        documents = [_job_set(deployed)]
    elif deployed.needed.nodes == 1:
        documents = [_deployment(deployed), _service(deployed)]
    else:
        documents = [_leader_worker_set(deployed), _service(deployed)]
    return str(yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=1000))


def shell_line(words: Iterable[str]) -> str:
    """Words as a shell reads them; one that begins with `$` is a variable."""
    return " ".join(f'"{w}"' if w.startswith("$") else shlex.quote(w) for w in words)


def _metadata(deployed: Deployed) -> Json:
    return {
        "name": deployed.name,
        "namespace": deployed.keys.namespace,
        "labels": {"app.kubernetes.io/name": deployed.name},
    }


def _deployment(deployed: Deployed) -> Json:
    labels = {"app.kubernetes.io/name": deployed.name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(deployed),
        "spec": {
            "replicas": 1,
            # Two at once would need the devices twice.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": _pod(deployed, "0", "127.0.0.1", probed=True),
            },
        },
    }


def _leader_worker_set(deployed: Deployed) -> Json:
    """One group of as many pods as nodes; if one dies, all start anew."""
    leader = {"app.kubernetes.io/name": deployed.name, "role": "leader"}
    place = ("$LWS_WORKER_INDEX", "$LWS_LEADER_ADDRESS")
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": _metadata(deployed),
        "spec": {
            "replicas": 1,
            "leaderWorkerTemplate": {
                "size": deployed.needed.nodes,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {
                    "metadata": {"labels": leader},
                    "spec": _pod(deployed, *place, probed=True),
                },
                "workerTemplate": {"spec": _pod(deployed, *place, probed=False)},
            },
        },
    }


def _job_set(deployed: Deployed) -> Json:
    """Pods of an indexed job find each other by the first one's name. The set restarts: a pod may
    die with all its ranks."""
    name, nodes = deployed.name, deployed.needed.nodes
    restarts = deployed.command.restarts
    deployed = replace(deployed, command=replace(deployed.command, restarts=0))
    first = f"{name}-ranks-0-0.{name}"
    pod = _pod(deployed, "$JOB_COMPLETION_INDEX", first, probed=False)
    pod["restartPolicy"] = "Never"
    job = {
        "parallelism": nodes,
        "completions": nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(deployed),
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": {"maxRestarts": restarts},
            "replicatedJobs": [{"name": "ranks", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _service(deployed: Deployed) -> Json:
    """Not called like the workload: a group's controller makes a headless service of that name, by
    which its pods find each other."""
    selector = {"app.kubernetes.io/name": deployed.name}
    if deployed.needed.nodes > 1:
        selector["role"] = "leader"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**_metadata(deployed), "name": f"{deployed.name}-http"},
        "spec": {
            "selector": selector,
            "ports": [{"name": "http", "port": deployed.port, "targetPort": "http"}],
        },
    }


def _pod(deployed: Deployed, node_rank: str, address: str, probed: bool) -> Json:
    """Not as root, with a shared-memory volume, and time to drain before it is ended."""
    keys = deployed.keys
    volumes: list[Json] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if keys.model_claim is not None:
        claim = {"claimName": keys.model_claim, "readOnly": True}
        volumes.append({"name": "models", "persistentVolumeClaim": claim})
    return {
        "terminationGracePeriodSeconds": int(deployed.drain_seconds) + _LEAVING_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(deployed, node_rank, address, probed)],
        "volumes": volumes,
    }


def _container(deployed: Deployed, node_rank: str, address: str, probed: bool) -> Json:
    keys, needed = deployed.keys, deployed.needed
    words = deployed.command.words("python", node_rank, address, str(_RENDEZVOUS_PORT))
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if keys.model_claim is not None:
        mounts.append({"name": "models", "mountPath": keys.model_path})
    amounts: Json = {
        "cpu": str(needed.cores),
        "memory": f"{needed.memory_mib}Mi",
    }
    if needed.gpus:
        amounts[keys.gpu_resource] = str(needed.gpus)
    container: Json = {
        "name": "tessera",
        "image": keys.image,
        "workingDir": keys.working_dir,
        "command": ["/bin/sh", "-c", f"exec {shell_line(words)}"],
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    if probed:
        container["ports"] = [{"name": "http", "containerPort": deployed.port}]
        container |= _probes(keys.start_minutes)
    return container


def _probes(start_minutes: int) -> Json:
    """A model that loads isn't ill: `/health` answers only once it has started."""
    health = {"httpGet": {"path": "/health", "port": "http"}}
    ready = {"httpGet": {"path": "/ready", "port": "http"}}
    period = 10
    return {
        "startupProbe": {
            **ready,
            "periodSeconds": period,
            "failureThreshold": start_minutes * 60 // period,
        },
        "livenessProbe": {**health, "periodSeconds": period, "failureThreshold": 3},
        "readinessProbe": {**ready, "periodSeconds": 5, "failureThreshold": 1},
    }
