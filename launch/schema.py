"""Every key that a launcher takes, with its type and default.

A key left null is decided by the planner (degrees) or follows from the model and the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class PlanOutput(Enum):
    table = "table"
    json = "json"


class Objective(Enum):
    throughput = "throughput"
    latency = "latency"
    cost = "cost"
    fewest_gpus = "fewest_gpus"


class Collectives(Enum):
    auto = "auto"
    gloo = "gloo"
    shared_memory = "shared_memory"


class DeviceKind(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class JobKind(Enum):
    serve = "serve"
    generate = "generate"
    measure = "measure"


class SubmitBackend(Enum):
    slurm = "slurm"
    kubernetes = "kubernetes"
    skypilot = "skypilot"


class SubmitMode(Enum):
    now = "now"
    dry = "dry"


class BaselineChoice(Enum):
    auto = "auto"
    none = "none"


@dataclass
class PrecisionKeys:
    weights: str = "stored"
    compute: str | None = None
    kv_cache: str | None = None


@dataclass
class WorkloadKeys:
    input_tokens: int = 512
    output_tokens: int = 128
    concurrency: int = 8


@dataclass
class EngineKeys:
    step_tokens: int = 512
    requests: int = 32
    block_tokens: int = 16
    context_tokens: int | None = None
    batches: int | None = None
    queue: int | None = None
    prefix_cache: bool = True
    swap_gib: float = 0.0
    kernels: str = "auto"
    attention: str = "auto"
    cuda_graphs: bool = True
    sequence_parallel: str = "auto"


@dataclass
class SloKeys:
    ttft_ms: float | None = None
    tpot_ms: float | None = None


@dataclass
class BudgetKeys:
    gpus: int | None = None
    dollars_per_hour: float | None = None


@dataclass
class PlanKeys:
    """What a plan needs; every launcher takes these."""

    model: str | None = None
    cluster: str = "local"
    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    stage_tp: list[int] | None = None
    heads: str = "auto"
    stages: list[int] | None = None
    objective: Objective = Objective.throughput
    slo: SloKeys = field(default_factory=SloKeys)
    budget: BudgetKeys = field(default_factory=BudgetKeys)
    memory_gib: float | None = None
    memory_share: float = 0.85
    precision: PrecisionKeys = field(default_factory=PrecisionKeys)
    workload: WorkloadKeys = field(default_factory=WorkloadKeys)
    engine: EngineKeys = field(default_factory=EngineKeys)


@dataclass
class PlanCommand(PlanKeys):
    output: PlanOutput = PlanOutput.table
    picture: str | None = None
    page: str | None = None


@dataclass
class RunKeys(PlanKeys):
    """What a run needs beside its plan."""

    device: DeviceKind = DeviceKind.auto
    threads: int | None = None
    collectives: Collectives = Collectives.auto
    collective_timeout_seconds: float = 120.0
    symmetric_memory: bool = False
    report: str | None = None
    trace: str | None = None
    trace_steps: int = 16
    run_folder: str | None = "auto"


@dataclass
class GenerateCommand(RunKeys):
    input: str = "???"
    output: str = "???"


@dataclass
class ServeCommand(RunKeys):
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: str | None = None
    served_model_name: str | None = None
    drain_seconds: float = 20.0
    restarts: int = 0


@dataclass
class MeasureCommand(RunKeys):
    repeats: int = 3
    baseline: BaselineChoice = BaselineChoice.auto
    output: str | None = None
    page: str | None = None
    picture: str | None = None


@dataclass
class SlurmKeys:
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    minutes: int | None = None
    requeue: bool = False
    options: list[str] = field(default_factory=list)


@dataclass
class KubernetesKeys:
    image: str = "tessera:latest"
    namespace: str = "default"
    working_dir: str = "/opt/tessera"
    model_claim: str | None = None
    model_path: str = "/models"
    gpu_resource: str = "nvidia.com/gpu"
    start_minutes: int = 30


@dataclass
class SkyPilotKeys:
    image: str = "tessera:latest"
    working_dir: str = "/opt/tessera"
    accelerator: str | None = None


@dataclass
class SubmitCommand(ServeCommand):
    """The keys of serve hold for what it starts; those of the other jobs may be given too."""

    job: JobKind = JobKind.serve
    backend: SubmitBackend = SubmitBackend.slurm
    submit: SubmitMode = SubmitMode.now
    follow: bool = True
    folder: str = "outputs/jobs"
    nodes: int | None = None
    cores: int | None = None
    slurm: SlurmKeys = field(default_factory=SlurmKeys)
    kubernetes: KubernetesKeys = field(default_factory=KubernetesKeys)
    skypilot: SkyPilotKeys = field(default_factory=SkyPilotKeys)
    input: str | None = None
    output: str | None = None
    repeats: int = 3
    baseline: BaselineChoice = BaselineChoice.auto
    page: str | None = None
    picture: str | None = None


@dataclass
class CalibrateCommand:
    output: str = "???"
    budget_seconds: float = 60.0
    ranks: list[int] | None = None
    device: DeviceKind = DeviceKind.auto
    threads: int | None = None
    collectives: Collectives = Collectives.auto
    collective_timeout_seconds: float = 120.0
    run_folder: str | None = "auto"
