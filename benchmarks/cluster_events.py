"""A run on many workers, event by event: client, scheduler and shared disk each serve one request after the other.

What is modelled: the client plans alone, then keeps a window of two tasks a worker in flight; the scheduler takes a
fixed time for every task handed in and for every one that ends; a worker starts, reads the whole manifest from the
shared disk, and for each task reads its images, computes, and writes its files; workers die at a rate, their task is
done again and they come back; at the end the client reads every commit record. With ``parts`` there is neither
scheduler nor window: every worker plans for itself and does its own shards. Not modelled: the network (reports and
tasks are kilobytes), memory that runs out, and users.
"""

import heapq
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

WINDOW_PER_WORKER = 2
SHARD = 64
LOSSES = ("planning", "start", "disk", "scheduler and client", "deaths", "last tasks", "end")


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What things take. Seconds and bytes."""

    image_seconds: float
    image_bytes: float
    """Read of the shared disk per image: picture and labels."""
    stored_bytes: float
    """Written per image."""
    shard_seconds: float
    """Of each task besides its images."""
    plan_seconds_per_image: float
    """The manifest's reading and the plan."""
    end_seconds_per_shard: float
    """The commit record's reading, after the last task."""
    manifest_seconds_per_image: float
    """A worker's CPU for reading the manifest, once."""
    manifest_bytes_per_image: float
    """Of the file."""
    start_seconds: float
    """Of a worker, before it reads anything."""
    stagger_seconds: float = 0.0
    """Workers come evenly over this time: a batch system starts its jobs one by one."""
    scheduler_seconds: float = 1 / 270
    """Per task, half when it is handed in, half when it ends."""
    client_seconds: float = 0.001
    """Per task: its report, the log, the next one."""
    disk_bytes_per_second: float = 2e9
    """Of the shared disk, for all workers together."""
    disk_seconds_per_file: float = 0.0
    """Of its metadata server, per file opened or created, for all workers together."""
    files_per_shard: int = 12
    """Written."""
    deaths_per_hour: float = 0.0
    """Of each worker."""
    rebirth_seconds: float = 30.0
    """From a worker's death until it starts again."""
    spread: float = 0.06
    """Of tasks' computing time, as a share of it: 64 images of different content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One simulated run."""

    seconds: float
    efficiency: float
    """Core seconds of undisturbed computing over workers times seconds."""
    scheduler_load: float
    """Share of its time that the scheduler is at work while tasks are."""
    client_load: float
    disk_load: float
    lost: dict[str, float]
    """Where the other core seconds went, as shares of workers times seconds."""

    @property
    def first_limit(self) -> str:
        """What costs most, if anything costs much; else nothing."""
        name, share = max(self.lost.items(), key=lambda item: item[1])
        return f"{name} ({100 * share:.0f} %)" if share > 0.05 else ""


class _Server:
    """Serves one after the other; ``ask`` says when a request that comes now is done."""

    def __init__(self) -> None:
        self.free = self.busy = 0.0

    def ask(self, now: float, seconds: float) -> float:
        self.free = max(now, self.free) + seconds
        self.busy += seconds
        return self.free


class Simulation:
    """One run; ``run`` may be called once."""

    def __init__(self, costs: Costs, *, images: int, workers: int, parts: bool = False, seed: int = 0) -> None:
        self.costs, self.images, self.workers, self.parts = costs, images, workers, parts
        self.tasks = -(-images // SHARD)
        self.rng = np.random.default_rng(seed)
        self.scheduler, self.client, self.disk = _Server(), _Server(), _Server()
        self.events: list[tuple[float, int, str, int]] = []
        self.order = count()
        self.lost = dict.fromkeys(LOSSES, 0.0)
        self.computed = 0.0
        self.to_submit, self.queued = self.tasks, 0
        self.idle: dict[int, float] = {}  # worker -> since when
        self.own = [self.tasks // workers + (worker < self.tasks % workers) for worker in range(workers)]
        """Tasks left to each worker, with ``parts``."""
        self.begun: dict[int, float] = {}

    def at(self, time: float, what: str, worker: int) -> None:
        heapq.heappush(self.events, (time, next(self.order), what, worker))

    def run(self) -> Outcome:
        costs, planned = self.costs, 0.0
        if not self.parts:
            planned = costs.plan_seconds_per_image * self.images
            self.lost["planning"] += planned * self.workers
        for worker in range(self.workers):
            late = costs.stagger_seconds * worker / self.workers
            self.lost["start"] += late
            self.at(planned + late, "start", worker)
        if not self.parts:
            self.at(planned + costs.start_seconds, "submit", -1)
        now = planned
        while self.events:
            now, _, what, worker = heapq.heappop(self.events)
            getattr(self, f"_{what}")(now, worker)
        computing = now - planned
        end = costs.end_seconds_per_shard * (-(-self.tasks // self.workers) if self.parts else self.tasks)
        self.lost["end"] += end * self.workers
        for since in self.idle.values():
            self.lost["last tasks"] += now - since
        seconds = now + end
        everything = seconds * self.workers
        return Outcome(
            seconds=seconds,
            efficiency=self.computed / everything,
            scheduler_load=self.scheduler.busy / computing,
            client_load=self.client.busy / computing,
            disk_load=self.disk.busy / computing,
            lost={name: value / everything for name, value in self.lost.items()},
        )

    # --- a worker's life --------------------------------------------------------------------------------------------

    def _start(self, now: float, worker: int) -> None:
        """Its process; then the manifest, which all of them want at the same time."""
        self.begun[worker] = now
        self.at(now + self.costs.start_seconds, "fetch_manifest", worker)

    def _fetch_manifest(self, now: float, worker: int) -> None:
        costs = self.costs
        read = self._from_disk(now, costs.manifest_bytes_per_image * self.images, files=1)
        plan = costs.plan_seconds_per_image * self.images if self.parts else 0.0
        self.lost["planning"] += plan
        self.at(read + costs.manifest_seconds_per_image * self.images + plan, "free", worker)
        self.lost["start"] -= plan

    def _free(self, now: float, worker: int) -> None:
        self.lost["start"] += now - self.begun.pop(worker)
        self._next(now, worker)

    def _next(self, now: float, worker: int) -> None:
        """Give a worker its next task, or let it wait."""
        if self.parts:
            if self.own[worker]:
                self.own[worker] -= 1
                self._begin(now, worker)
            else:
                self.idle[worker] = now
        else:
            self.idle[worker] = now
            self._hand_out(now)

    def _begin(self, now: float, worker: int) -> None:
        costs = self.costs
        got = self._from_disk(now, costs.image_bytes * SHARD, files=2 * SHARD)
        self.lost["disk"] += got - now
        self.at(got, "compute", worker)

    def _compute(self, now: float, worker: int) -> None:
        costs = self.costs
        seconds = (costs.image_seconds * SHARD + costs.shard_seconds) * max(0.2, self.rng.normal(1, costs.spread))
        survives = self.rng.exponential(3600 / costs.deaths_per_hour) if costs.deaths_per_hour else np.inf
        if survives < seconds:
            self.lost["deaths"] += survives
            self.at(now + float(survives), "die", worker)
        else:
            self.computed += seconds
            self.at(now + seconds, "write", worker)

    def _write(self, now: float, worker: int) -> None:
        costs = self.costs
        written = self._from_disk(now, costs.stored_bytes * SHARD, files=costs.files_per_shard)
        self.lost["disk"] += written - now
        self.at(written, "finish", worker)

    def _finish(self, now: float, worker: int) -> None:
        if self.parts:
            self._next(now, worker)
            return
        heard = self.scheduler.ask(now, self.costs.scheduler_seconds / 2)
        self.idle[worker] = now
        self.at(heard, "heard", worker)

    def _die(self, now: float, worker: int) -> None:
        if self.parts:
            self.own[worker] += 1
        else:
            self.scheduler.ask(now, self.costs.scheduler_seconds)
            self.queued += 1
            self._hand_out(now)
        self.lost["deaths"] += self.costs.rebirth_seconds
        self.at(now + self.costs.rebirth_seconds, "start", worker)

    # --- scheduler and client ---------------------------------------------------------------------------------------

    def _heard(self, now: float, worker: int) -> None:
        """The scheduler knows of the end of a task: its worker gets the next, the client its report."""
        self._hand_out(now)
        self.at(self.client.ask(now, self.costs.client_seconds), "submit", worker)

    def _submit(self, now: float, worker: int) -> None:
        """The client hands in a task; the first time, a window of them."""
        number = min(self.to_submit, 1 if worker >= 0 else WINDOW_PER_WORKER * self.workers)
        self.to_submit -= number
        for _ in range(number):
            self.at(self.scheduler.ask(now, self.costs.scheduler_seconds / 2), "submitted", -1)

    def _submitted(self, now: float, _: int) -> None:
        self.queued += 1
        self._hand_out(now)

    def _hand_out(self, now: float) -> None:
        while self.queued and self.idle:
            worker = next(iter(self.idle))  # who has waited longest
            since = self.idle.pop(worker)
            self.lost["scheduler and client"] += now - since
            self.queued -= 1
            self._begin(now, worker)

    def _from_disk(self, now: float, size: float, *, files: int) -> float:
        costs = self.costs
        return self.disk.ask(now, size / costs.disk_bytes_per_second + files * costs.disk_seconds_per_file)


def simulate(costs: Costs, *, images: int, workers: int, **options: Any) -> Outcome:
    """Run one simulation; ``parts`` and ``seed`` are options."""
    return Simulation(costs, images=images, workers=workers, **options).run()
