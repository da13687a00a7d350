"""Where the time of the training loop goes: how long the GPU idles, how often the program waits for
it, and what reading and noise take. The loop is that of a run, `Loop.train`."""

import functools
import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from settings import NETWORKS, on_digits
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ddpm.randomness import Order
from ddpm.runner.terminal.progress import Progress
from ddpm.training.after_step import AfterStep
from ddpm.training.health import Requests, Watch
from ddpm.training.loader import load
from ddpm.training.meter import Meter
from ddpm.training.step import Step
from gpu_parts.configuration import MODES, build_fabric, build_job, needs
from gpu_parts.part import Figures, Machine, Part
from gpu_parts.speed import CELLS, TINY, Cell, free, start_over, target

IDLE, READ_AND_NOISE = 3.0, 1.0  # per cent, at most
LISTED = 12  # kernels in the JSON
# Calls of the CUDA runtime in which the program waits for the GPU; one of the second is the
# profiler's own, at its end.
WAITS = re.compile(r"^cuda(StreamSynchronize|DeviceSynchronize|EventSynchronize|Memcpy)$")
OWN = "cudaDeviceSynchronize"

Interval = tuple[float, float]


class Stretch(NamedTuple):
    """Steps before, steps that are measured, and steps that the profiler records. After some twenty
    a run waits for the device once, to estimate how long it will take."""

    warm: int
    plain: int
    profiled: int


STRETCHES = {"cuda": Stretch(warm=25, plain=30, profiled=10), "cpu": Stretch(1, 2, 1)}
ENDLESS = 100_000  # steps


def loop_parts(machine: Machine) -> list[Part]:
    """Ho et al.'s network at both batches, eager, and the larger compiled."""
    wanted = [(CELLS[0], "bf16"), (CELLS[1], "bf16"), (CELLS[1], "bf16 compiled")]
    return [
        Part(
            f"loop/{cell}/{mode}",
            functools.partial(check_loop, machine, cell, mode),
            needs(MODES[mode]),
            seconds=15.0,
            waits=MODES[mode].compiled,
        )
        for cell, mode in wanted
    ]


def check_loop(machine: Machine, cell: Cell, mode: str, figures: Figures) -> None:
    """Fill in the time of a step, and where it goes."""
    start_over(machine)
    batch = cell.batch if machine.is_gpu else 2
    job = build_job(words_of(machine, cell), MODES[mode], batch_size=batch)
    job.save_every = job.sample_every = job.sample_every_epochs = None
    job.log_every = ENDLESS
    fabric = build_fabric(machine.hardware, MODES[mode])
    job.data.prepare()
    rows = slice(0, batch)
    learned = job.make_state(fabric)
    step = job.make_step(fabric, learned, rows)
    order = Order(len(job.data), 0, batch, rows, 0, ENDLESS)
    warm_up(step, job.data, order)
    free(machine)  # other processes may need it until then
    machine.wait_for_turn()
    window = Window(machine, fabric)
    meter = Meter(batch, job.steps_per_epoch)
    progress = Progress(order.stop, enabled=False)
    run: Any = StandIn()
    measures = (None, None, job.make_best())  # neither held-out loss nor scores
    after_step = AfterStep(job, run, step, order, learned, meter, window, progress, *measures)
    job.train(step, order, meter, after_step)
    seconds = window.seconds / window.stretch.plain
    figures |= {"batch": batch, "ms a step": 1000 * seconds}
    figures["images/s"] = batch / seconds
    figures |= reading_and_noise(step, job, order, seconds)
    figures |= of_profile(window.profile, window.stretch.profiled, machine)
    figures["targets"] = [
        target(
            "reading and noise",
            figures["reading %"] + figures["noise %"],
            READ_AND_NOISE,
            " % of a step",
            most=True,
        )
    ]
    if "GPU idle %" in figures:
        figures["targets"].append(
            target("GPU idle", figures["GPU idle %"], IDLE, " % of the time", most=True)
        )
    del learned, step
    start_over(machine)


def words_of(machine: Machine, cell: Cell) -> tuple[str, ...]:
    """The cell's network; a tiny one on a CPU."""
    words = NETWORKS[cell.network] if machine.is_gpu else TINY
    return (*on_digits(words), f"data_dir={machine.work / 'data'}")


def warm_up(step: Step, data: Any, order: Order) -> None:
    """Two steps, in which the network is compiled if it is to be."""
    for n, batch in enumerate(itertools.islice(load(data, order, step.fabric.device, 0), 2)):
        step(n, *batch)


class StandIn:
    """In place of the run: there are no files and no trackers here."""

    def log(self, *arguments: Any) -> None: ...
    def save(self, *arguments: Any) -> None: ...
    def preempted(self, *arguments: Any) -> None: ...


class Window(Watch):
    """Looks at the steps as in a run, measures some of them, and ends the loop.

    After the loop, `seconds` is the time of the measured steps, and `profile` holds the recorded.
    """

    def __init__(self, machine: Machine, fabric: Any) -> None:
        signals: Any = SimpleNamespace(wanted=False, received=None)
        super().__init__(fabric, max_nonfinite_steps=5, signals=signals, folder=machine.work)
        kind = ProfilerActivity.CUDA if machine.is_gpu else ProfilerActivity.CPU
        self.profile = profile(activities=[kind])
        self.stretch = STRETCHES[machine.device.type]
        self.seconds = 0.0

    def requested(self, done: int) -> Requests:
        asked = super().requested(done)
        warm, plain, profiled = self.stretch
        if done == warm:
            self.wait()
            self.began = time.perf_counter()
        elif done == warm + plain:
            self.wait()
            self.seconds = time.perf_counter() - self.began
            self.profile.start()
        elif done == warm + plain + profiled:
            self.profile.stop()
            return asked._replace(stop=True)
        return asked

    def wait(self) -> None:
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()


def reading_and_noise(step: Step, job: Any, order: Order, seconds: float) -> dict[str, float]:
    """What reading a batch to the device, and drawing what a step needs of chance, take by
    themselves, in per cent of a step."""
    device = step.fabric.device
    batches = load(job.data, order, device, job.num_workers)
    images, labels = next(batches)
    reading = seconds_of(lambda: next(batches), device)
    noise = seconds_of(lambda: step.noise(0, step.rows), device)
    prepared = seconds_of(lambda: step.draw(0, images, labels), device)
    return {
        "reading %": 100 * reading / seconds,
        "noise %": 100 * noise / seconds,
        "noise, flips and scaling %": 100 * prepared / seconds,
    }


def seconds_of(call: Callable[[], object], device: torch.device, times: int = 20) -> float:
    """Seconds for a call, of several with one wait for the device at the end."""
    call()
    began = time.perf_counter()
    for _ in range(times):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def of_profile(recorded: profile, steps: int, machine: Machine) -> Figures:
    """Of so many steps: the idle share of the GPU, how often the program waits for it, and the
    kernels that take longest."""
    events = list(recorded.events())
    kind = DeviceType.CUDA if machine.is_gpu else DeviceType.CPU
    work = [event for event in events if event.device_type == kind and is_work(event)]
    spans = [(event.time_range.start, event.time_range.end) for event in work]
    waits = Counter(event.name for event in events if WAITS.search(event.name))
    waits -= Counter([OWN])
    times: Counter[str] = Counter()
    for event, (began, ended) in zip(work, spans, strict=True):
        times[event.name] += ended - began
    whole = sum(times.values()) or 1.0
    figures: Figures = {
        "waits a step": sum(waits.values()) / steps,
        "waits": dict(waits),
        "kernels a step": len(work) / steps,
        "longest kernels %": {
            name[:90]: round(100 * spent / whole, 1) for name, spent in times.most_common(LISTED)
        },
    }
    if not spans:
        figures["profile"] = "the profiler recorded no kernels here"
    elif machine.is_gpu:
        figures["GPU idle %"] = 100 * idle(spans)
    return figures


def is_work(event: Any) -> bool:
    """Whether an event is a kernel or a copy, and no annotation of the profiler."""
    return not getattr(event, "is_user_annotation", False) and event.time_range.elapsed_us() > 0


def idle(spans: Sequence[Interval]) -> float:
    """The share of the time from the first beginning to the last end in which nothing runs."""
    if not spans:
        return 1.0
    whole = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return 1 - busy(spans) / whole if whole else 0.0


def busy(spans: Iterable[Interval]) -> float:
    """For how long at least one of these intervals lasts."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
