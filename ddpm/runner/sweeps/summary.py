"""What became of the jobs of a sweep, as a table at its end."""

from pathlib import Path

from ddpm.errors import InputError
from ddpm.runner.runs import run_dir
from ddpm.runner.runs.metrics_log import final, read_metrics, values
from ddpm.runner.sweeps import callback, folder
from ddpm.runner.sweeps.compose import Job


def summary() -> bool:
    """Print the table of the sweep's jobs; whether all are done."""
    jobs = callback.jobs or _found(callback.folder)
    common = shared([job.words for job in jobs])
    rows = [("overrides", "loss", "images/s", "state", "folder")]
    rows += [_row(job, common) for job in jobs]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\nall with {' '.join(common)}\n" if common else "")
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    states = [row[3] for row in rows[1:]]
    print(f"\n{sums(states)}, in {callback.folder}", flush=True)
    return all(state in folder.OVER for state in states)


def sums(states: list[str]) -> str:
    """`3 done, 0 failed, 1 waiting`: done and failed always, others where there are any."""
    names = dict.fromkeys(["done", "failed", *sorted(states)])
    counted = {name: states.count(name) for name in names}
    return ", ".join(
        f"{n} {name}" for name, n in counted.items() if n or name in ("done", "failed")
    )


def _found(path: Path) -> list[Job]:
    """The jobs that lie in the folder: those of a launcher that ran them in other processes."""
    found = []
    for number, place in enumerate(folder.jobs(path)):
        try:
            words = run_dir.read_config(place).get("overrides", [])
        except InputError:
            words = run_dir.read_status(place).get("words", [])
        found.append(Job(number, words, place))
    return found


def shared(words: list[list[str]]) -> list[str]:
    """The words that all jobs have, where there are several: what no row needs to repeat."""
    if len(words) < 2:
        return []
    return [word for word in words[0] if all(word in others for others in words)]


def _row(job: Job, common: list[str]) -> tuple[str, ...]:
    """Overrides, final loss, images per second, state and folder of a job."""
    rows: list[dict] = []
    if job.folder is not None and (job.folder / "metrics.jsonl").exists():
        rows = read_metrics(job.folder / "metrics.jsonl")
    last = rows[-1] if rows else {}
    return (
        " ".join(word for word in job.words if word not in common) or "-",
        _number(None if job.folder is None else final(values(job.folder)), ".4f"),
        _number(last.get("train/images_per_sec"), ".0f"),
        job.state,
        str(job.folder or "-"),
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
