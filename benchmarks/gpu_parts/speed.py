"""Images per second, share of the card's peak and memory of training and sampling, beside diffusers
tuned in the same way."""

import functools
import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import contenders
import torch
from contenders import COMPILED, OURS, STOCK, TUNED, Contender, Round, Spread
from settings import NETWORKS, Setting

from gpu_parts.configuration import MODES, needs
from gpu_parts.part import Figures, Machine, Part, Skipped
from gpu_parts.peak import peak
from gpu_parts.report import device_name

ROUNDS, SECONDS = 3, 0.5  # seconds for each figure of a round
FASTER = 1.3  # than tuned diffusers
SHARE_OF_PEAK, WHERE = 0.4, ("ho", 512)
SHORTAGES, PAUSE = 20, 3.0  # times, and seconds, to wait for memory that other processes hold
# Where a CPU stands in: compiled for it, larger networks take minutes.
TINY = (*NETWORKS["digits"], "model.widths=[8]", "model.attention_resolutions=[]")


class Cell(NamedTuple):
    """A network of `NETWORKS` and its batch."""

    network: str
    batch: int

    def __str__(self) -> str:
        return f"{self.network} {self.batch}"

    def setting(self, machine: Machine, dtype: str) -> Setting:
        """What is measured: a tiny network on a CPU."""
        if machine.is_gpu:
            return Setting(NETWORKS[self.network], self.batch, dtype, machine.device)
        return Setting(TINY, 2, dtype, machine.device)


CELLS = [Cell("ho", 128), Cell("ho", 512), Cell("celeba64", 128), Cell("ho256", 8)]
COMPILED_CELLS = [Cell("ho", 512), Cell("celeba64", 128)]  # each takes two minutes to compile


def speed_parts(machine: Machine) -> list[Part]:
    """Each network in bf16; the first in fp32, and some compiled, too."""
    wanted = [(cell, "bf16") for cell in CELLS]
    wanted += [(CELLS[0], "fp32"), *((cell, "bf16 compiled") for cell in COMPILED_CELLS)]
    return [
        Part(
            f"speed/{cell}/{mode}",
            functools.partial(check_speed, machine, cell, mode),
            needs(MODES[mode]),
            seconds=15.0,
            waits=MODES[mode].compiled,
        )
        for cell, mode in wanted
    ]


def check_speed(machine: Machine, cell: Cell, mode: str, figures: Figures) -> None:
    """Fill in the speed and memory of ours and, where it is installed, of diffusers."""
    start_over(machine)
    setting = cell.setting(machine, mode.split()[0])
    names = [OURS]
    if contenders.has_diffusers():
        names = [TUNED, OURS]
        names += [STOCK] if (cell, mode) == (CELLS[0], "bf16") else []
    else:
        figures["not compared"] = "diffusers is not installed"
    if MODES[mode].compiled:
        names = [name + COMPILED for name in names]
    rows: dict[str, dict[str, Any]] = {}
    compared = [prepared(machine, name, setting, rows) for name in names]
    ours = compared[names.index(next(name for name in names if name.startswith(OURS)))]
    figures["batch"], figures["parameters"] = setting.batch, count(ours)
    flops = contenders.flops(ours, setting)
    figures["GFLOP/image forward"] = round(flops / 1e9, 3)
    if machine.is_gpu and mode == "fp32":
        figures["TF32 in convolutions"] = torch.backends.cudnn.allow_tf32
    free(machine)  # other processes may need it until then
    machine.wait_for_turn()
    rounds = [
        contenders.measure_round(compared, setting, SECONDS if machine.is_gpu else 0.01)
        for _ in range(ROUNDS if machine.is_gpu else 1)
    ]
    card = device_name(machine.device)
    best = peak(card)
    if machine.is_gpu and best is None:
        figures["MFU"] = f"unknown: gpu_parts/peak.py has no peak for {card}"
    for name in names:
        rows[name] |= speeds(rounds, name, flops, best if "bf16" in mode else None)
    figures["rows"] = rows
    figures["ratios"] = ratios(rounds, ours.name, names)
    figures["targets"] = targets(figures, ours.name, cell)
    del compared, ours
    start_over(machine)


def count(contender: Contender) -> int:
    return sum(parameter.numel() for parameter in contender.network.parameters())


def prepared(
    machine: Machine, name: str, setting: Setting, rows: dict[str, dict[str, Any]]
) -> Contender:
    """A contender that has taken its first steps; fills in the memory that these took at most, and
    their time.

    Raises:
        Skipped: it does not fit into the memory.
    """

    def first_steps() -> Contender:
        free(machine)
        held = torch.cuda.memory_allocated() if machine.is_gpu else 0
        began = time.monotonic()
        contender = contenders.make(name, setting)
        for call in (contender.train, contender.sample):  # a graph is recorded within these
            contenders.seconds_for(call, 4, setting.device)
        row = {"first steps s": round(time.monotonic() - began, 1)}
        if machine.is_gpu:
            row["memory MB"] = round((torch.cuda.max_memory_allocated() - held) / 1e6)
        rows[name] = row
        return contender

    try:
        return with_patience(first_steps, machine)
    except torch.OutOfMemoryError:
        raise Skipped(f"{name}: a batch of {setting.batch} does not fit into the memory") from None


def with_patience(call: Callable[[], Contender], machine: Machine) -> Contender:
    """Call again where the memory is short, as long as other processes may be holding it."""
    for _ in range(SHORTAGES if machine.turn else 0):
        try:
            return call()
        except torch.OutOfMemoryError:
            free(machine)
            time.sleep(PAUSE)
    return call()


def speeds(rounds: Sequence[Round], name: str, flops: float, best: float | None) -> dict[str, Any]:
    """Images per second, and the share of the peak `best` (FLOP/s) where it is known. A training
    step counts as three forward passes."""
    found: dict[str, Any] = {}
    for what, passes in (("training", 3), ("sampling", 1)):
        rate = contenders.images_per_second(rounds, name, what).median
        found[f"{what} images/s"] = round(rate, 1)
        if best:
            found[f"{what} MFU"] = round(passes * flops * rate / best, 4)
    return found


def ratios(
    rounds: Sequence[Round], ours: str, names: Sequence[str]
) -> dict[str, dict[str, Spread]]:
    """Ours over each of the others."""
    return {
        f"{ours} / {other}": {
            what: contenders.ratio(rounds, ours, other, what) for what in ("training", "sampling")
        }
        for other in names
        if other != ours
    }


def targets(figures: Figures, ours: str, cell: Cell) -> list[str]:
    """What was to be reached, what was, and whether that is enough."""
    found = []
    for pair, both in figures["ratios"].items():
        if TUNED in pair:
            found += [
                target(f"{what} {pair}", spread.median, FASTER, "x")
                for what, spread in both.items()
            ]
    share = figures["rows"][ours].get("training MFU")
    if tuple(cell) == WHERE and share is not None:
        found.append(target("MFU of training", 100 * share, 100 * SHARE_OF_PEAK, " %"))
    return found


def target(what: str, value: float, wanted: float, unit: str, *, most: bool = False) -> str:
    """A line: the figure beside the target, which is the least, or the most, that is wanted."""
    met = value <= wanted if most else value >= wanted
    bound = "at most" if most else "at least"
    verdict = "met" if met else "NOT met"
    return f"{what}: {value:.3g}{unit}, {bound} {wanted:g}{unit} wanted: {verdict}"


def start_over(machine: Machine) -> None:
    """Forget also what was compiled: for another batch, a network would be compiled for any."""
    if "torch._dynamo" in sys.modules:  # else nothing was compiled, and importing it takes seconds
        torch.compiler.reset()
    free(machine)


def free(machine: Machine) -> None:
    """Give back the memory that is not needed, and count from here."""
    if machine.is_gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
