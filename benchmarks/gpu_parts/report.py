"""The results as tables in Markdown, and as JSON."""

import contextlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gpu_parts.comparison import TOLERANCE
from gpu_parts.configuration import MODES
from gpu_parts.part import Machine, Result

MATRICES = {"train": "a step of training", "sample": "sampling"}


def facts(machine: Machine) -> dict[str, Any]:
    """What the results were measured on."""
    found = {
        "device": device_name(machine.device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if machine.is_gpu:
        properties = torch.cuda.get_device_properties(machine.device)
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "memory MB": round(properties.total_memory / 1e6),
        }
    return found


def device_name(device: torch.device) -> str:
    """The model of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path, machine: Machine, results: Sequence[Result], budget: float) -> None:
    """Write all results, tracebacks too."""
    about = {"machine": facts(machine), "budget": budget}
    parts = [asdict(result) for result in results]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(about | {"parts": parts}, indent=1, default=str))
    temporary.replace(path)


def tables(machine: Machine, results: Sequence[Result], seconds: float, budget: float) -> str:
    """All results as Markdown."""
    states = [result.status for result in results]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("passed", "failed", "skipped"))
    about = ", ".join(f"{name} {value}" for name, value in facts(machine).items())
    lines = [f"{counts}; {seconds:.0f} s of {budget:.0f} s", "", about, ""]
    if any(group_of(result) in MATRICES for result in results):
        lines += ["Largest difference of a tensor from float32 on the CPU, relative to its norm."]
        lines += [f"Allowed in {allowed(group)}." for group in MATRICES] + [""]
    for group, title in MATRICES.items():
        lines += matrix(title, [result for result in results if group_of(result) == group])
    lines += listing([result for result in results if group_of(result) not in MATRICES])
    lines += [*speeds(results), *targets(machine, results)]
    lines += [
        f"failed: {result.name}: {result.reason.splitlines()[0] if result.reason else ''}"
        for result in results
        if result.status == "failed"
    ]
    return "\n".join(lines + skipped(results))


def allowed(group: str) -> str:
    """What a part of this group may differ by."""
    bounds = {MODES[name].precision: name for name in ("fp32", "bf16")}
    texts = [f"{TOLERANCE[group][precision]:g} in {name}" for precision, name in bounds.items()]
    return f"{MATRICES[group]}: {', '.join(texts)} (TF32 is off)"


def group_of(result: Result) -> str:
    return result.name.split("/")[0]


def matrix(title: str, results: Sequence[Result]) -> list[str]:
    """A row for each variant, a column for each mode."""
    if not results:
        return []
    cells: dict[str, dict[str, str]] = {}
    for result in results:
        _, variant, mode = result.name.split("/")
        cells.setdefault(variant, {})[mode] = cell(result)
    modes = [mode for mode in MODES if any(mode in row for row in cells.values())]
    rows = [[variant, *(row.get(mode, "-") for mode in modes)] for variant, row in cells.items()]
    return [*table([title, *modes], rows), ""]


def cell(result: Result) -> str:
    """The difference; or what came of it instead."""
    difference = result.figures.get("difference")
    shown = f"{difference:.1e}" if difference is not None else ""
    return shown if result.status == "passed" else f"{result.status} {shown}".strip()


def listing(results: Sequence[Result]) -> list[str]:
    """A row for each part, with its figures."""
    if not results:
        return []
    rows = [
        [result.name, result.status, f"{result.seconds:.1f}", figures_of(result)]
        for result in results
    ]
    return [*table(["part", "result", "s", "figures"], rows), ""]


def figures_of(result: Result) -> str:
    """The figures that are one number or text; tables and targets have a place of their own."""
    shown = {k: v for k, v in result.figures.items() if k not in ("rows", "ratios", "targets")}
    return ", ".join(f"{name} {number(value)}" for name, value in shown.items())


def number(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {number(one)}" for name, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) and value < 1e4 else str(value)


def speeds(results: Sequence[Result]) -> list[str]:
    """A table of what was measured beside each other, and one of its ratios."""
    measured = [result for result in results if "rows" in result.figures]
    if not measured:
        return []
    columns = list(
        dict.fromkeys(c for r in measured for row in r.figures["rows"].values() for c in row)
    )
    rows = [
        [result.name, name, *(number(row.get(column, "-")) for column in columns)]
        for result in measured
        for name, row in result.figures["rows"].items()
    ]
    ratios = [
        [result.name, pair, *map(spread, both.values())]
        for result in measured
        for pair, both in result.figures.get("ratios", {}).items()
    ]
    found = [*table(["part", "of", *columns], rows), ""]
    return [*found, *table(["part", "ratio", "training", "sampling"], ratios), ""]


def spread(values: Sequence[float]) -> str:
    median, least, most = values
    return f"{median:.3g}x ({least:.3g}x to {most:.3g}x)"


def targets(machine: Machine, results: Sequence[Result]) -> list[str]:
    """Which targets are met; one that is not is no failure."""
    found = [(one.name, text) for one in results for text in one.figures.get("targets", [])]
    if not found:
        return []
    where = "" if machine.is_gpu else ", of a GPU: on a CPU tiny networks only try the check"
    return [f"targets{where}", *(f"- {name}: {text}" for name, text in found), ""]


def skipped(results: Sequence[Result]) -> list[str]:
    """The names of the skipped parts, by reason."""
    names: dict[str, list[str]] = {}
    for result in results:
        if result.status == "skipped":
            names.setdefault(result.reason, []).append(result.name)
    return [f"skipped: {reason}: {'; '.join(parts)}" for reason, parts in names.items()]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    safe = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in safe]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:]]
