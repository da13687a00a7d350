"""Training and sampling beside diffusers, in one process: images per second and ratios.

    python benchmarks/against_diffusers.py                          # Ho et al.'s CIFAR-10 network
    python benchmarks/against_diffusers.py --network digits --threads 1 --batch 128
    python benchmarks/against_diffusers.py --device cuda --dtype bf16 --compile --json beside.json

Compared are the loop of diffusers' training example (stock), the same tuned by hand, and ours as a
run does it; benchmarks/contenders.py says what each of them does. All have the same network and the
same weights. They are measured in turn, round after round, so that another load on the machine, or
a clock that changes, meets all of them; a ratio is the median of the ratios within each round.

GOMP_SPINCOUNT=1000 in the environment lets threads wait for each other as briefly as in a run, for
all of them.

Needs diffusers (pip install diffusers; it is among the dev requirements).
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import contenders
import torch
from contenders import COMPILED, OURS, STOCK, STOCK_FP32, TUNED, Contender, Round
from gpu_parts.configuration import configuration
from gpu_parts.report import device_name, table
from settings import NETWORKS, Setting

CPU_BATCH = 8
KINDS = ("training", "sampling")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if not contenders.has_diffusers():
        sys.exit("diffusers is not installed: pip install diffusers")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: this machine has no GPU that PyTorch can use.")
    if options.threads:
        torch.set_num_threads(options.threads)
    setting = setting_of(options)
    names = [STOCK, TUNED, OURS]
    if options.dtype == "bf16":
        names.insert(0, STOCK_FP32)
    if options.compile:
        names += [TUNED + COMPILED, OURS + COMPILED]
    compared = [contenders.make(name, setting) for name in names]
    about = facts(options, setting, compared[-1])
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    rounds = measure(compared, setting, options.rounds, options.seconds)
    print("\n".join(tables(rounds, names)))
    if options.json:
        record = {"about": about, "rounds": rounds, "ratios": ratios(rounds, names)}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=list(NETWORKS), default="ho")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument(
        "--batch", type=int, help=f"images; default: {CPU_BATCH}, on a GPU that of the network"
    )
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="for each figure of a round")
    parser.add_argument("--json", type=Path, help="also write everything into this file")
    options = parser.parse_args(arguments)
    for name in ("threads", "batch", "rounds", "seconds"):
        if (value := getattr(options, name)) is not None and value <= 0:
            parser.error(f"--{name} {value}: must be above 0")
    return options


def setting_of(options: argparse.Namespace) -> Setting:
    words, device = NETWORKS[options.network], torch.device(options.device)
    batch = options.batch
    if batch is None:
        on_gpu = device.type == "cuda"
        batch = configuration(*words)["job"]["batch_size"] if on_gpu else CPU_BATCH
    return Setting(words, batch, options.dtype, device)


def facts(options: argparse.Namespace, setting: Setting, one: Contender) -> dict[str, Any]:
    """What was measured, and on what."""
    import diffusers

    return {
        "device": device_name(setting.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "network": options.network,
        "parameters": sum(p.numel() for p in one.network.parameters()),
        "GFLOP/image forward": round(contenders.flops(one, setting) / 1e9, 3),
        "batch": setting.batch,
        "dtype": setting.dtype,
    }


def measure(
    compared: Sequence[Contender], setting: Setting, rounds: int, seconds: float
) -> list[Round]:
    """So many rounds; each begins with another contender."""
    for contender in compared:  # compile, choose algorithms, fill the caches
        for call in (contender.train, contender.sample):
            contenders.seconds_for(call, 2, setting.device)
    found = []
    for number in range(rounds):
        first = number % len(compared)
        in_turn = [*compared[first:], *compared[:first]]
        found.append(contenders.measure_round(in_turn, setting, seconds))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Whose speed is divided by whose: ours by each of diffusers, and ours compiled, too."""
    theirs = [name for name in names if not name.startswith(OURS)]
    found = [(OURS, other) for other in theirs if not other.endswith(COMPILED)]
    return found + [(name, other) for name in names if name == OURS + COMPILED for other in theirs]


def ratios(rounds: Sequence[Round], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {
        f"{name} / {other}": {
            what: contenders.ratio(rounds, name, other, what)._asdict() for what in KINDS
        }
        for name, other in pairs(names)
    }


def tables(rounds: Sequence[Round], names: Sequence[str]) -> list[str]:
    """Images per second and ratios: the median over the rounds (the least to the most)."""

    def cell(spread: contenders.Spread, unit: str = "") -> str:
        median, least, most = (f"{value:.4g}{unit}" for value in spread)
        return f"{median} ({least} to {most})"

    def row(name: str) -> list[str]:
        found = [contenders.images_per_second(rounds, name, what) for what in KINDS]
        return [name, *map(cell, found)]

    def quotient(name: str, other: str) -> list[str]:
        found = [contenders.ratio(rounds, name, other, what) for what in KINDS]
        return [f"{name} / {other}", *(cell(spread, "x") for spread in found)]

    return [
        "",
        *table(["images/s", "training", "sampling, of one step"], [row(name) for name in names]),
        "",
        *table(["ratio", *KINDS], [quotient(*pair) for pair in pairs(names)]),
    ]


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    main()
