"""Plans follow the rule by which ranks choose a backend."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launch import planning
from launch.chosen_links import chosen_links
from launch.planning import decide
from launch.schema import EngineKeys, GenerateCommand, SubmitCommand
from parallel.hardware.facts import Cluster, Link, Node
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.communication import step_collectives
from parallel.planner.limits import EngineLimits
from parallel.planner.memory import CHANNEL_BYTES
from parallel.planner.plan import Plan
from parallel.units import GIB, MIB
from tests.specs import BIG, toy_device

FAST = Link("shared_memory", 1e9, 1e-6, operations=("all_gather", "all_reduce", "send"))
SLOW = Link("loopback", 1e8, 1e-3)
CPU = replace(toy_device(16.0, kind="cpu"), native_kernels=True)


def machine(native: bool = True, count: int = 2) -> Cluster:
    device = replace(CPU, native_kernels=native)
    return Cluster("toys", (Node("box", (device,) * count, FAST, 8, 64 * GIB, SLOW),))


@pytest.mark.parametrize(
    ("native", "kernels", "asked", "lacks", "summed", "sent"),
    [
        (True, "auto", "auto", "", "shared_memory", "shared_memory"),
        (True, "auto", "auto", "no compiler", "shared_memory", "shared_memory"),
        (True, "auto", "shared_memory", "", "shared_memory", "shared_memory"),
        (True, "auto", "gloo", "", "loopback", "loopback"),
        (True, "portable", "auto", "", "shared_memory", "loopback"),
        (False, "auto", "shared_memory", "", "shared_memory", "loopback"),
        (True, "portable", "shared_memory", "no compiler", "loopback", "loopback"),
        (False, "auto", "auto", "no compiler", "loopback", "loopback"),
    ],
)
def test_each_axis_goes_where_its_ranks_would(
    native: bool, kernels: str, asked: str, lacks: str, summed: str, sent: str
) -> None:
    (node,) = chosen_links(machine(native), EngineLimits(kernels=kernels), asked, lacks).nodes
    assert [node.link_for(o).kind for o in ("all_reduce", "all_gather")] == [summed] * 2
    assert node.link_for("send").kind == sent


def test_other_links_stay_as_they_are() -> None:
    node = Node("box", (toy_device(),) * 2, Link("nvlink", 1e9), 8, GIB)
    cluster = Cluster("toys", (node,))
    assert chosen_links(cluster, EngineLimits(kernels="portable"), "gloo", "all") == cluster


@pytest.mark.parametrize("kernels", ["auto", "portable"])
def test_a_pipeline_is_planned_over_what_it_will_send_with(
    monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    plan = planned(monkeypatch, GenerateCommand(pp=2, engine=EngineKeys(kernels=kernels)))
    link = FAST if kernels == "auto" else SLOW
    (call,) = step_collectives(plan.layout, 0, plan.formats, plan.batch, plan.batch)
    sent = link.collective_seconds("send", call.full_bytes, 2)
    back = SLOW.collective_seconds("send", plan.batch * 64, 2)
    assert plan.decode.communication_seconds == pytest.approx(sent + back)
    buffers = {m.communication for m in plan.memory}
    assert buffers == {CHANNEL_BYTES if kernels == "auto" else 0}


@pytest.mark.parametrize(
    ("settings", "mebibytes"),
    [
        (GenerateCommand(tp=2, engine=EngineKeys(kernels="portable")), 0),
        (SubmitCommand(tp=2, engine=EngineKeys(kernels="portable")), 66),
        (GenerateCommand(tp=2), 2),
    ],
    ids=["a run here", "a job elsewhere", "native"],
)
def test_what_this_host_lacks_counts_for_runs_on_it(
    monkeypatch: pytest.MonkeyPatch, settings: GenerateCommand | SubmitCommand, mebibytes: int
) -> None:
    monkeypatch.setattr(planning, "lacking_here", lambda: "no compiler")
    plan = planned(monkeypatch, settings)
    assert {m.communication for m in plan.memory} == {mebibytes * MIB}


def planned(monkeypatch: pytest.MonkeyPatch, settings: GenerateCommand | SubmitCommand) -> Plan:
    monkeypatch.setattr(planning, "load_cluster", lambda *_: machine())
    monkeypatch.setattr(planning, "depends_on_ranks", lambda *_: False)
    settings.cluster, settings.workload.input_tokens = "toys.yaml", 16
    plan = decide(settings, BIG, None)
    assert plan.layout == Layout.make(BIG, Degrees(settings.tp or 1, settings.pp or 1))
    return plan
