"""Manifests against the schemas of what would read them, without a cluster.

Core kinds: the schemas of Kubernetes itself, nothing unknown. JobSet: through the models generated
from its API, where whatever they don't know gets lost. LeaderWorkerSet: a schema of its fields.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml  # type: ignore[import-untyped]
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from launch.job_command import JobCommand
from launch.job_resources import Resources
from launch.kubernetes import Deployed, manifests
from launch.schema import JobKind, KubernetesKeys, SkyPilotKeys
from launch.skypilot import task
from parallel.units import GIB

Json = dict[str, Any]
DATA = Path(__file__).parent / "data"
LEADER_WORKER_SET = json.loads((DATA / "leaderworkerset.json").read_text(encoding="utf-8"))
SKYPILOT = json.loads((DATA / "skypilot.json").read_text(encoding="utf-8"))
DRAIN_SECONDS = 45.5
KEYS = KubernetesKeys(namespace="inference", model_claim="models", start_minutes=7)


def deployed(job: JobKind, nodes: int, gpus: int = 4, name: str = "Llama-3.2_1B") -> Deployed:
    needed = Resources(nodes, ranks=4, gpus=gpus, cores=16, memory_bytes=20 * GIB)
    command = JobCommand(job.value, ("tp=4", f"pp={nodes}", "model='/a b'"), nodes, 4, restarts=2)
    return Deployed(job, name, command, needed, KEYS, port=8123, drain_seconds=DRAIN_SECONDS)


def documents(job: JobKind, nodes: int, **changed: Any) -> list[Json]:
    return list(yaml.safe_load_all(manifests(deployed(job, nodes, **changed))))


def check_core(document: Json) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def check_pod(template: Json) -> None:
    """A pod template as the pod that it becomes."""
    metadata = {"name": "x", **template.get("metadata", {})}
    check_core({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})


def check_leader_worker_set(document: Json) -> None:
    jsonschema.validate(document, LEADER_WORKER_SET)
    group = document["spec"]["leaderWorkerTemplate"]
    check_pod(group["leaderTemplate"])
    check_pod(group["workerTemplate"])


def check_job_set(document: Json) -> None:
    read = JobsetV1alpha2JobSet.from_dict(document)
    assert read is not None and json.loads(read.to_json()) == document
    for replicated in document["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
        check_core({**job, "spec": replicated["template"]["spec"]})


CHECKS = {"LeaderWorkerSet": check_leader_worker_set, "JobSet": check_job_set}
EVERY = [(job, nodes) for job in JobKind for nodes in (1, 2)]


@pytest.mark.parametrize("gpus", [0, 4])
@pytest.mark.parametrize(("job", "nodes"), EVERY)
def test_every_manifest_keeps_to_its_schema(job: JobKind, nodes: int, gpus: int) -> None:
    for document in documents(job, nodes, gpus=gpus):
        CHECKS.get(document["kind"], check_core)(document)


@pytest.mark.parametrize(
    ("job", "nodes", "kinds"),
    [
        (JobKind.serve, 1, ["Deployment", "Service"]),
        (JobKind.serve, 2, ["LeaderWorkerSet", "Service"]),
        (JobKind.measure, 1, ["JobSet"]),
        (JobKind.generate, 2, ["JobSet"]),
    ],
)
def test_what_kind_a_job_is(job: JobKind, nodes: int, kinds: list[str]) -> None:
    assert [document["kind"] for document in documents(job, nodes)] == kinds


def templates(document: Json) -> list[Json]:
    """Every pod template of a workload, the one that is probed first."""
    spec = document["spec"]
    if document["kind"] == "Deployment":
        return [spec["template"]]
    if document["kind"] == "JobSet":
        return [job["template"]["spec"]["template"] for job in spec["replicatedJobs"]]
    group = spec["leaderWorkerTemplate"]
    return [group["leaderTemplate"], group["workerTemplate"]]


@pytest.mark.parametrize(("job", "nodes"), EVERY)
def test_what_every_pod_has(job: JobKind, nodes: int) -> None:
    for template in templates(documents(job, nodes)[0]):
        pod = template["spec"]
        assert pod["terminationGracePeriodSeconds"] > DRAIN_SECONDS
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
        (container,) = pod["containers"]
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        amounts = {"cpu": "16", "memory": "20480Mi", "nvidia.com/gpu": "4"}
        assert container["resources"] == {"requests": amounts, "limits": amounts}
        assert "'model='\"'\"'/a b'\"'\"''" in container["command"][-1]


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_server_is_probed_where_its_port_is(nodes: int) -> None:
    workload, service = documents(JobKind.serve, nodes)
    probed, *others = (t["spec"]["containers"][0] for t in templates(workload))
    (port,) = probed["ports"]
    assert port["containerPort"] == 8123
    paths = {"startupProbe": "/ready", "livenessProbe": "/health", "readinessProbe": "/ready"}
    for probe, path in paths.items():
        assert probed[probe]["httpGet"] == {"path": path, "port": port["name"]}
        assert not any(probe in other for other in others)
    starting = probed["startupProbe"]
    assert starting["periodSeconds"] * starting["failureThreshold"] == KEYS.start_minutes * 60
    (served,) = service["spec"]["ports"]
    assert (served["port"], served["targetPort"]) == (8123, port["name"])
    reached = [
        service["spec"]["selector"].items() <= t.get("metadata", {}).get("labels", {}).items()
        for t in templates(workload)
    ]
    assert reached == [True, False][:nodes]


def test_the_service_leaves_a_groups_own_name_alone() -> None:
    """The controller makes a headless service called like the group; ranks meet by it."""
    group, service = documents(JobKind.serve, 2)
    assert service["metadata"]["name"] != group["metadata"]["name"]


@pytest.mark.parametrize("name", ["x" * 90, "7B", "Qwen/Qwen3-0.6B", "." * 40])
@pytest.mark.parametrize(("job", "nodes"), EVERY)
def test_any_model_makes_a_legal_name(job: JobKind, nodes: int, name: str) -> None:
    legal = LEADER_WORKER_SET["$defs"]["metadata"]
    for document in documents(job, nodes, name=name):
        jsonschema.validate(document["metadata"], {**LEADER_WORKER_SET, **legal})
        # `<name>-ranks-0-0` and the like name pods.
        assert len(document["metadata"]["name"]) <= 63 - len("-ranks-0-0-abcde")


@pytest.mark.parametrize("gpus", [0, 4])
@pytest.mark.parametrize(("job", "nodes"), EVERY)
def test_a_skypilot_task_asks_for_what_the_plan_needs(job: JobKind, nodes: int, gpus: int) -> None:
    text = task(deployed(job, nodes, gpus=gpus), "a100", SkyPilotKeys())
    document = yaml.safe_load(text)
    jsonschema.validate(document, SKYPILOT)
    asked = document["resources"]
    assert document["num_nodes"] == nodes
    assert (asked["cpus"], asked["memory"]) == ("16+", "20+")
    assert asked.get("accelerators") == ({"A100-80GB": 4} if gpus else None)
    assert asked.get("ports") == (8123 if job is JobKind.serve else None)
    assert '--node-rank "$SKYPILOT_NODE_RANK" --master-addr "$HEAD"' in document["run"]
    named = task(deployed(job, nodes), "a100", SkyPilotKeys(accelerator="A100"))
    assert yaml.safe_load(named)["resources"]["accelerators"] == {"A100": 4}


@pytest.mark.parametrize(
    ("job", "nodes", "path"),
    [
        (JobKind.serve, 1, ("spec",)),
        (JobKind.serve, 1, ("spec", "template", "spec", "containers", 0, "livenessProbe")),
        (JobKind.serve, 2, ("spec",)),
        (JobKind.serve, 2, ("spec", "leaderWorkerTemplate")),
        (JobKind.serve, 2, ("spec", "leaderWorkerTemplate", "workerTemplate", "spec")),
        (JobKind.measure, 2, ("spec",)),
        (JobKind.measure, 2, ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec")),
    ],
)
def test_a_mistyped_field_is_found(job: JobKind, nodes: int, path: tuple[Any, ...]) -> None:
    """What the checks above are worth."""
    document = copy.deepcopy(documents(job, nodes)[0])
    place: Any = document
    for step in path:
        place = place[step]
    place["misspelt"] = 1
    with pytest.raises(
        (AssertionError, jsonschema.ValidationError, kubernetes_validate.ValidationError)
    ):
        CHECKS.get(document["kind"], check_core)(document)
