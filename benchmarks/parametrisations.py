"""Which parametrisation suits small data? The tables and the plot of docs/parametrisations.md.

    python benchmarks/parametrisations.py grid outputs/grid-digits              # objective x loss
    python benchmarks/parametrisations.py grid outputs/grid-mnist --data mnist
    python benchmarks/parametrisations.py methods outputs/methods               # samplers as well
    python benchmarks/parametrisations.py networks outputs/networks             # DiT and U-Net

Each trains with three seeds, by a sweep of run.py that repeats nothing when it is called again, and
prints means over the seeds with 95 % intervals (Student's t). `grid` scores its runs while they
train; the others score their last weights by job=evaluate. --only-table prints what is there.
"""

import argparse
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import yaml

from ddpm.runner.report import stats
from ddpm.runner.runs import scores

HERE = Path(__file__).resolve().parent.parent
SEEDS = "seed=0,1,2"
SLOTS = ("hydra/launcher=slots", "hydra.launcher.gpus=[]")
QUIET = ("tracker=local", "job.sample_every=null")
QUANTITIES = "eps,x_0,velocity"

# Settings of MNIST that two cores can afford: the network of the default run, on 4x4 patches.
MNIST = (
    *("data=mnist", "model=unet", "model.widths=[16,64]", "model.patch_size=4"),
    *("job.max_steps=600", "job.batch_size=64", "job.warmup_steps=50", "job.ema_decay=0.99"),
    *("optimizer.lr=3e-3", "optimizer.betas=[0.9,0.99]", "job.lr_decay_start=300"),
    "hardware.threads=1",
)
DIGITS = ("data=digits", "job.max_steps=2000")

METHODS = {
    "eps, linear (DDPM)": ("schedule=linear", "objective=eps", "weighting=uniform"),
    "v, cosine": ("schedule=cosine", "objective=v", "weighting=uniform"),
    "velocity, rectified": ("schedule=rectified", "objective=velocity", "weighting=uniform"),
    "EDM": (
        *("schedule=linear", "objective=edm", "objective.sigma_data=data"),
        *("weighting=edm", "timesteps=log_normal"),
    ),
    "x_0, cosine, min-SNR": ("schedule=cosine", "objective=x_0", "weighting=min_snr"),
}
SAMPLERS = {"respaced": "ancestral", "ddim": "DDIM", "dpm_solver": "DPM-Solver++ 2M"}
EVALUATIONS = (5, 10, 20, 50)
NETWORKS = {"U-Net": ("model=unet",), "DiT": ("model=dit",)}


def run(*words: str) -> None:
    subprocess.run([sys.executable, "run.py", *QUIET[:1], *words], cwd=HERE, check=True)


def sweep(folder: Path, *words: str) -> None:
    run("-m", f"sweep={folder.resolve()}/", *SLOTS, SEEDS, QUIET[1], *words)


def evaluate(folder: Path, runs: Iterable[Path], *words: str) -> None:
    checkpoints = ",".join(str(run.resolve()) for run in runs)
    common = ("job=evaluate", "metric=[fd,kd]", "job.num_samples=1000")
    run("-m", f"sweep={folder.resolve()}/", *common, f"checkpoint={checkpoints}", *words)


def jobs(folder: Path) -> list[Path]:
    """The folders of a sweep's finished jobs."""
    return sorted(path.parent for path in folder.glob("*/scores.jsonl"))


def config(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())


def choice(folder: Path, group: str) -> str:
    """The option of a group that a run has chosen."""
    return config(folder)["choices"][group]


def study(folder: Path, job: Path) -> str:
    """The sweep, of those in a folder, that trained what a job scored."""
    return Path(config(job)["checkpoint"]).relative_to(folder.resolve()).parts[0]


def score(folder: Path, measure: str) -> float:
    """The last kd or fd against held-out pictures, of the features named like the data."""
    name = f"{measure}_{choice(folder, 'data')}"
    return scores.latest(scores.read(folder))[name, "held_out"].value


def floor(folder: Path) -> float:
    """The Fréchet distance of as many real, held-out pictures."""
    name = f"fd_{choice(folder, 'data')}"
    found = scores.latest(scores.read(folder))[name, "held_out"].floor
    assert found is not None
    return found


def table(cells: dict[tuple[str, str], list[float]], corner: str) -> str:
    """Means with intervals as Markdown; cells by row and column, in the order of insertion."""
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for row in rows:
        texts = []
        for column in columns:
            values = cells.get((row, column))
            texts.append(
                " ".join(stats.with_interval(*stats.interval(values))) if values else stats.NONE
            )
        lines.append(f"| {row} | {' | '.join(texts)} |")
    return "\n".join(lines)


def grid(folder: Path, asked: argparse.Namespace) -> None:
    """Objective x loss on the straight path, up to u = 0.999, where eps can still be asked for."""
    settings = DIGITS if asked.data == "digits" else MNIST
    steps = next(word.partition("=")[2] for word in settings if "max_steps" in word)
    if not asked.only_table:
        sweep(
            *(folder, f"objective={QUANTITIES}", f"weighting={QUANTITIES}"),
            *("schedule=rectified", "schedule.end=0.999", "metric=[kd,fd]", *settings),
            *("job.evaluate_steps=20", "job.evaluate_samples=1000", f"job.evaluate_every={steps}"),
        )
    for measure in ("kd", "fd"):
        cells: dict[tuple[str, str], list[float]] = defaultdict(list)
        for objective in QUANTITIES.split(","):
            for job in jobs(folder):
                if choice(job, "objective") == objective:
                    column = f"loss of {choice(job, 'weighting')}"
                    cells[f"predicts {objective}", column].append(score(job, measure))
        print(f"\n{measure}\n\n{table(cells, '')}")


def methods(folder: Path, asked: argparse.Namespace) -> None:
    """Five parametrisations, three samplers, four numbers of network evaluations."""
    runs = {name: folder / name.split(" (")[0].replace(", ", "-") for name in METHODS}
    if not asked.only_table:
        for name, words in METHODS.items():
            sweep(runs[name], *DIGITS, *words)
        trained = [path.parent for one in runs.values() for path in one.glob("*/status.json")]
        evaluate(
            *(folder / "scores", sorted(trained), f"sampler={','.join(SAMPLERS)}"),
            f"sampler.steps={','.join(map(str, EVALUATIONS))}",
        )
    for measure in ("kd", "fd"):
        found: dict[tuple[str, str, int], list[float]] = defaultdict(list)
        for job in jobs(folder / "scores"):
            name = next(name for name, run in runs.items() if run.name == study(folder, job))
            steps = config(job)["sampler"]["steps"]
            found[name, choice(job, "sampler"), steps].append(score(job, measure))
        cells = {
            (f"{name}, {SAMPLERS[sampler]}", str(steps)): found[name, sampler, steps]
            for name in METHODS
            for sampler in SAMPLERS
            for steps in EVALUATIONS
        }
        print(f"\n{measure}\n\n{table(cells, 'network evaluations')}")
        if measure == "fd":
            plot(found, floor(jobs(folder / "scores")[0]), folder / "fd.png")


def plot(found: dict[tuple[str, str, int], list[float]], floor: float, file: Path) -> None:
    """A panel for each sampler, a line for each method, a point for each seed: the Fréchet distance
    over network evaluations."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(SAMPLERS), figsize=(10, 3.9), sharey=True, layout="constrained"
    )
    for panel, (sampler, title) in zip(panels, SAMPLERS.items(), strict=True):
        for number, name in enumerate(METHODS):
            seeds = [found[name, sampler, n] for n in EVALUATIONS]
            means = [stats.interval(values)[0] for values in seeds]
            panel.plot(EVALUATIONS, means, label=name, lw=1.8, color=f"C{number}")
            panel.plot(EVALUATIONS, seeds, ".", color=f"C{number}", alpha=0.5)
        panel.axhline(floor, color="black", ls=":", label="real, held-out digits")
        panel.set(title=title, xscale="log", yscale="log", xlabel="network evaluations")
        panel.set_xticks(EVALUATIONS, map(str, EVALUATIONS))
        panel.set_yticks((0.3, 0.5, 1, 2, 3), ("0.3", "0.5", "1", "2", "3"))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("fd_digits, lower is better")
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), fontsize=8)
    figure.savefig(file, dpi=110)
    print(f"\n{file}")


def networks(folder: Path, asked: argparse.Namespace) -> None:
    """The default run with a U-Net and with a DiT of as many FLOPs."""
    if not asked.only_table:
        for name, words in NETWORKS.items():
            sweep(folder / name, *words)
        trained = [path.parent for path in folder.glob("*/*/status.json")]
        evaluate(folder / "scores", sorted(trained))
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for job in jobs(folder / "scores"):
        row = study(folder, job)
        for measure in ("fd", "kd"):
            cells[row, measure].append(score(job, measure))
    print(f"\n{table(cells, '')}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    studies = {"grid": grid, "methods": methods, "networks": networks}
    parser.add_argument("study", choices=studies)
    parser.add_argument("folder", type=Path, help="of the sweeps")
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits", help="of grid")
    parser.add_argument("--only-table", action="store_true")
    asked = parser.parse_args()
    studies[asked.study](asked.folder, asked)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    main()
