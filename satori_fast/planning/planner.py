# SPDX-License-Identifier: Apache-2.0
"""Plans: the layout that is asked for, those that fit, fastest first, and what to change if none
does.

What is shown of a plan is `page`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from satori_fast.planning.devices import Device
from satori_fast.planning.job import EnginePlan, Job, Stage
from satori_fast.planning.layouts import (
    GPUS_PER_MACHINE,
    Layout,
    check_layout,
    possible_layouts,
    with_data,
)
from satori_fast.planning.memory import (
    StageMemory,
    cache_bytes,
    stage_memory,
)
from satori_fast.planning.timing import StepTime, step_time
from satori_fast.profiling.data_sheets import DATA_SHEETS

# Advice doubles the number of ranks up to here.
MAX_RANKS = 1024
# Of the memory of its own GPUs a server fills so much, at most this part of it with weights.
SERVER_SHARE, _WEIGHTS_SHARE = 0.9, 0.6


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout for a job.

    memory:  of each stage. time: of a step of the job's main stage.
    lacking: why it does not fit, in one line; None: it fits.
    """

    layout: Layout
    memory: Sequence[StageMemory]
    time: StepTime
    lacking: str | None

    @property
    def fits(self) -> bool:
        """Whether every stage fits."""
        return self.lacking is None

    @property
    def fullest(self) -> StageMemory:
        """The stage that needs most memory."""
        return max(self.memory, key=lambda memory: memory.peak)


@dataclass(frozen=True, slots=True)
class Advice:
    """A change, or several, after which a layout fits."""

    changes: tuple[str, ...]
    layout: Layout


@dataclass(frozen=True, slots=True)
class Plan:
    """A job on `num_gpus` devices.

    asked: the layout of the config. fitting: layouts that fit, most tokens per second first.
    advice: what else would fit, where `asked` does not.
    """

    job: Job
    device: Device
    num_gpus: int
    asked: Candidate
    fitting: tuple[Candidate, ...]
    advice: tuple[Advice, ...]


def make_plan(job: Job, layout: Layout, device: Device, num_gpus: int) -> Plan:
    """The plan of a job. ValueError for a layout that does not fit the model or the GPUs."""
    check_layout(layout, job.sizes.shape)
    layout = with_data(layout, num_gpus, num_servers=job.engine.num_gpus)
    asked = candidate(job, layout, device)
    fitting = fitting_layouts(job, layout, device)
    advice = () if asked.fits else advise(job, layout, device, num_gpus)
    return Plan(job, device, num_gpus, asked, tuple(fitting), advice)


def candidate(job: Job, layout: Layout, device: Device) -> Candidate:
    """Memory and time of a job in a layout."""
    memory = [stage_memory(job, stage, layout, device) for stage in job.stages]
    time = step_time(job, job.main, layout, device)
    found = Candidate(layout, memory, time, None)
    return replace(found, lacking=_lacking(job, found, device))


def _lacking(job: Job, found: Candidate, device: Device) -> str | None:
    needed, there, where = found.fullest.peak, device.memory_bytes, found.fullest.stage
    if needed > there:
        return f"{_gb(needed)} GB are needed in {where}, {_gb(there)} are there"
    engine, layout = job.engine, found.layout
    if engine.kind == "embedded" or not any(map(_samples, job.stages)):
        return None
    tensor = layout.tensor if engine.kind == "vllm" else engine.tensor
    weights = job.sizes.num_parameters() * job.element_bytes / tensor
    longest = max(stage.lengths.longest for stage in job.stages)
    least = weights + cache_bytes(job.sizes, longest, size=job.element_bytes, tensor=tensor)
    share = engine.share * there
    if least > share:
        return (
            f"rollout.gpu_memory_share = {engine.share:g} is {_gb(share)} GB, and the engine's "
            f"weights and one sequence take {_gb(least)}"
        )
    return None


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f}"


def _samples(stage: Stage) -> bool:
    return stage.sampling != "never"


def fitting_layouts(job: Job, like: Layout, device: Device) -> list[Candidate]:
    """Every layout of as many ranks that fits, most tokens per second first. Of two that differ in
    recomputation alone the slower ones are left out."""
    found: dict[Layout, Candidate] = {}
    for layout in possible_layouts(job.sizes.shape, like.num_ranks, job.engine.kind, like=like):
        each = candidate(job, layout, device)
        if each.fits:
            found.setdefault(replace(layout, recompute="none"), each)
    return sorted(found.values(), key=lambda each: -each.time.tokens_per_s)


def with_servers(engine: EnginePlan, number: int, weights: float, device: Device) -> EnginePlan:
    """The engine as so many servers, each on as many GPUs as `weights`, in bytes, need."""
    room = _WEIGHTS_SHARE * SERVER_SHARE * device.memory_bytes
    tensor = next((t for t in (1, 2, 4) if weights / t <= room), GPUS_PER_MACHINE)
    return replace(
        engine,
        kind="server",
        share=SERVER_SHARE,
        sleeps=False,
        tensor=tensor,
        num_gpus=number * tensor,
    )


# -- advice ---------------------------------------------------------------------------------------

_Case = tuple[Job, Layout]
_Change = tuple[str, Callable[[_Case], _Case]]


def advise(job: Job, layout: Layout, device: Device, num_gpus: int) -> tuple[Advice, ...]:
    """Changes after which some layout of as many GPUs fits: those that do alone; else all of them,
    one after the other until it fits; else more GPUs."""
    changes = _changes(job, layout, device)
    found: list[Advice] = []
    for name, change in changes:
        if (best := _best(*change((job, layout)), device)) is not None:
            found.append(Advice((name,), best))
    found = found or _all_changes(job, layout, device, num_gpus)
    return (*found, *_larger_devices(job, layout, device))


def _all_changes(job: Job, layout: Layout, device: Device, num_gpus: int) -> list[Advice]:
    case: _Case = (job, layout)
    names: list[str] = []
    for name, change in _changes(job, layout, device):
        case = change(case)
        names.append(name)
        if (best := _best(*case, device)) is not None:
            return [Advice(tuple(names), best)]
    while (num_gpus := 2 * num_gpus) <= MAX_RANKS:
        alone = _alone(case[1], num_gpus - case[0].engine.num_gpus)
        if (best := _best(case[0], alone, device)) is not None:
            return [Advice((*names, f"--gpus {num_gpus}"), best)]
    return []


def _larger_devices(job: Job, layout: Layout, device: Device) -> list[Advice]:
    """The smallest GPU with more memory, connected as well, on which it fits as it is."""
    if device.kind == "cpu":
        return []
    for sheet in sorted(DATA_SHEETS, key=lambda sheet: sheet.memory_gb):
        larger = Device.of_sheet(sheet)
        is_slower = larger.network_bytes_per_s < device.network_bytes_per_s
        if larger.memory_bytes <= device.memory_bytes or is_slower:
            continue
        if (best := _best(job, layout, larger)) is not None:
            return [Advice((f"--gpu {sheet.name}",), best)]
    return []


def _alone(layout: Layout, num_ranks: int) -> Layout:
    """As many ranks, nothing split."""
    return replace(layout, tensor=1, pipeline=1, context=1, chunks=1, data=num_ranks)


def _best(job: Job, layout: Layout, device: Device) -> Layout | None:
    fitting = fitting_layouts(job, layout, device)
    return fitting[0].layout if fitting else None


def _changes(job: Job, layout: Layout, device: Device) -> list[_Change]:
    """Settings that make a rank's share smaller, the cheapest first."""
    engine = job.engine
    found: list[_Change] = [("another layout", lambda case: case)]

    def of_job(name: str, change: Callable[[Job], Job]) -> None:
        found.append((name, lambda case: (change(case[0]), case[1])))

    if engine.kind == "vllm" and not engine.sleeps:
        of_job("rollout.sleep = true", lambda job: _with_engine(job, sleeps=True))
    if engine.kind == "vllm" and not layout.offload and job.main.learns_from_samples:
        found.append(("parallel.offload = true", lambda c: (c[0], replace(c[1], offload=True))))
    smallest = _smallest_microbatch(job)
    if smallest < job.microbatch:
        name = f"packing.max_tokens_per_microbatch = {smallest}"
        of_job(name, lambda job: replace(job, microbatch=smallest))
    for share in (0.3, 0.2):
        if engine.kind == "vllm" and engine.share > share:
            name = f"rollout.gpu_memory_share = {share:g}"
            of_job(name, lambda job, share=share: _with_engine(job, share=share))
    if not layout.shard_optimizer and layout.num_sharers > 1:
        name = "parallel.shard_optimizer = true"
        found.append((name, lambda case: (case[0], replace(case[1], shard_optimizer=True))))
    if engine.kind == "vllm" and layout.num_ranks >= 2 * GPUS_PER_MACHINE:
        found.append(_to_servers(job, layout, device))
    if any(role.name == "critic" for stage in job.stages for role in stage.roles):
        of_job('reinforce.recipe = "grpo"', _without_critic)
    if job.dtype == "float32":
        of_job('model.dtype = "bfloat16"', lambda job: replace(job, dtype="bfloat16"))
    return found


def _to_servers(job: Job, layout: Layout, device: Device) -> _Change:
    """A quarter of the GPUs samples, the others train, in pipelines too."""
    weights = job.sizes.num_parameters() * job.element_bytes
    each = with_servers(job.engine, 1, weights, device).num_gpus
    number = layout.num_ranks // 4 // each

    def change(case: _Case) -> _Case:
        engine = with_servers(case[0].engine, number, weights, device)
        left = case[1].num_ranks - engine.num_gpus
        return replace(case[0], engine=engine), _alone(case[1], left)

    return f'rollout.engine = "server", {number} servers of {each} GPUs each', change


def _with_engine(job: Job, **values: object) -> Job:
    return replace(job, engine=replace(job.engine, **values))  # type: ignore[arg-type]


def _smallest_microbatch(job: Job) -> int:
    """Tokens that the longest sequence needs, or a pair of them."""
    pairs = any(stage.name == "preference" for stage in job.stages)
    return max(stage.lengths.longest for stage in job.stages) * (2 if pairs else 1)


def _without_critic(job: Job) -> Job:
    stages = tuple(
        replace(stage, roles=tuple(role for role in stage.roles if role.name != "critic"))
        for stage in job.stages
    )
    return replace(job, stages=stages)
