"""Comparison of several runs: settings, seeds, means and intervals of measurements."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ddpm.runner.report import config_diff
from ddpm.runner.report.config_diff import Flat
from ddpm.runner.report.rulers import Rulers, of_runs
from ddpm.runner.report.run_record import MEMORY, SPEED, RunRecord
from ddpm.runner.report.stats import NONE, Difference, interval, paired
from ddpm.runner.roles import LOSS_DEPENDS_ON, within
from ddpm.runner.runs.metrics_log import LOSS, final
from ddpm.runner.runs.scores import Scored, ident, logged

SAME_PICTURES = (
    "several runs scored the same pictures, and count once (job.first_seed draws others, not seed)"
)
SHORT = 40  # characters of a short label
_UP = ("accuracy", "precision", "recall", "density", "coverage", "inception", "psnr", "ssim")
_DOWN = ("fid", "kid", "loss", "bits", "bpd", "nll", "bound", "mmd", "distance", "error")


@dataclass(frozen=True)
class Statistic:
    """A measurement of a setting: mean and half width of the 95 % interval (for two runs or more)
    over `n` runs; `so_far`: none of them is done; `best`: no other mean is better; `bold`: it is
    the best mean, or compared with it and not shown to be worse; `from_best`: the difference from
    the best mean, paired over common seeds; `score`: of the first run, with its own interval and
    its floor; `by_seed`: the values."""

    mean: float
    half: float | None
    n: int
    so_far: bool
    best: bool = False
    bold: bool = False
    from_best: Difference | None = None
    score: Scored | None = None
    by_seed: dict[str, float] = field(default_factory=dict)


@dataclass
class Setting:
    """Runs that differ only in their seed."""

    number: int
    values: dict[str, str]
    runs: list[RunRecord]
    label: str = ""
    statistics: dict[str, Statistic] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def distinct(self) -> list[RunRecord]:
        """The runs without those that repeat another one; of equal runs the first that is done."""
        found: dict[object, RunRecord] = {}
        for run in self.runs:
            key = config_diff.identity(run)
            if key not in found or (run.state == "done" and found[key].state != "done"):
                found[key] = run
        return list(found.values())

    @property
    def done(self) -> int:
        return sum(run.state == "done" for run in self.distinct)

    @property
    def devices(self) -> str:
        return "; ".join(dict.fromkeys(d for run in self.runs if (d := run.device))) or NONE


@dataclass
class Comparison:
    """The content of a report.

    Args:
        keys: keys in which runs differ, in the order of the columns.
        measures: names of the measurements, in the order of the columns.
        flats: the settings of each run, in the order of `runs`.
        names: display name of each run, by its folder.
    """

    title: str
    runs: list[RunRecord]
    flats: list[Flat]
    keys: list[str]
    settings: list[Setting]
    measures: list[str]
    names: dict[Path, str]
    notes: list[str]
    rulers: Rulers = field(default_factory=Rulers)

    def figures(self, run: RunRecord) -> dict[str, float]:
        """Measurements of a run by column: unlike rulers have columns of their own."""
        return {self.rulers.column(run, m): value for m, value in figures(run).items()}

    def direction(self, column: str) -> int:
        """1 if larger is better, -1 if smaller is, 0 if unknown."""
        return self.rulers.better.get(column, direction(column))

    def setting_of(self, run: RunRecord) -> Setting | None:
        """The setting of a run; None if its configuration is unknown."""
        return next((s for s in self.settings if any(r is run for r in s.runs)), None)

    def number_of(self, run: RunRecord) -> int:
        """The number of a run's setting; -1 if its configuration is unknown."""
        setting = self.setting_of(run)
        return -1 if setting is None else setting.number

    def folder_of_repeated(self, run: RunRecord) -> str:
        """`, <folder>` if another run has the same settings and seed; otherwise empty."""
        setting = self.setting_of(run)
        same = [] if setting is None else [r for r in setting.runs if r.seed == run.seed]
        return f", {self.names[run.folder]}" if len(same) > 1 else ""


def figures(run: RunRecord) -> dict[str, float]:
    """Measurements of a run, one number each: the final loss (`loss`), the last value of each
    `eval/...`, the median of images per second, the peak memory, parameters, seconds."""
    found: dict[str, float] = {}
    if LOSS in run.metrics and (loss := final(run.metrics[LOSS][1].tolist())) is not None:
        found["loss"] = loss
    for name, (_, values) in sorted(run.metrics.items()):
        if name.startswith("eval/"):
            found[name] = float(values[-1])
    found |= {name: score.value for name, score in logged(run.scores).items()}
    if SPEED in run.metrics:
        found["images/s"] = float(np.median(run.metrics[SPEED][1]))
    if MEMORY in run.metrics:
        found["memory"] = float(run.metrics[MEMORY][1].max())
    parameters = run.about.get("parameters")
    if isinstance(parameters, int) and not isinstance(parameters, bool):
        found["parameters"] = float(parameters)
    if run.seconds is not None:
        found["seconds"] = run.seconds
    return found


def direction(measure: str) -> int:
    """1 if larger is better, -1 if smaller is, 0 if unknown."""
    name = measure.lower()
    if measure == "loss":
        return -1
    if not measure.startswith("eval/"):
        return 0
    return 1 if any(w in name for w in _UP) else -1 if any(w in name for w in _DOWN) else 0


def make(runs: Sequence[RunRecord], title: str, *, means: bool = True) -> Comparison:
    """Compare runs of different folders.

    Args:
        means: whether means over the seeds of a setting are shown, and notes on them are needed.
    """
    known = [run for run in runs if run.config]
    flats = [config_diff.settings(run) for run in known]
    keys = config_diff.differing(known, flats)
    settings = _settings(known, flats, keys)
    if means:
        _note_repeats(settings)
    rulers = of_runs(runs)
    measures = list(dict.fromkeys(rulers.column(r, m) for r in runs for m in figures(r)))
    order = ["loss", *sorted(m for m in measures if m.startswith("eval/"))]
    order += ["images/s", "memory", "parameters", "seconds"]
    measures = [name for name in order if name in measures]
    all_flats = {id(run): flat for run, flat in zip(known, flats, strict=True)}
    comparison = Comparison(
        title=title,
        runs=list(runs),
        flats=[all_flats.get(id(run), {}) for run in runs],
        keys=keys,
        settings=settings,
        measures=measures,
        names=_names(runs),
        notes=[],
        rulers=rulers,
    )
    for setting in settings:
        found = {m: _statistic(comparison, setting, m) for m in measures}
        setting.statistics = {m: s for m, s in found.items() if s is not None}
    classes = _mark_best(comparison)
    comparison.notes = _notes(comparison, classes)
    return comparison


def _settings(runs: Sequence[RunRecord], flats: Sequence[Flat], keys: list[str]) -> list[Setting]:
    found: dict[tuple[str, ...], Setting] = {}
    for run, flat in zip(runs, flats, strict=True):
        cells = tuple(config_diff.cell(flat, key) for key in keys)
        if cells not in found:
            found[cells] = Setting(len(found), dict(zip(keys, cells, strict=True)), [])
        found[cells].runs.append(run)
    for setting in found.values():
        first = setting.runs[0].choices
        setting.label = _words(setting, keys) or brief(
            f"{first.get('model')} on {first.get('data')}"
        )
        if len({run.code for run in setting.runs if run.code[0]}) > 1:
            setting.notes.append("runs of different code")
    return list(found.values())


def _note_repeats(settings: Sequence[Setting]) -> None:
    """Note what a mean over the runs of a setting counts."""
    for setting in settings:
        notes = []
        if repeats := len(setting.runs) - len(setting.distinct):
            notes.append(
                f"{repeats} of {len(setting.runs)} runs {'repeats' if repeats == 1 else 'repeat'} "
                "another one (equal configuration and seed), and such runs count once"
            )
        seeds = Counter(str(run.seed) for run in setting.distinct)
        if twice := [seed for seed, n in seeds.items() if n > 1]:
            notes.append(f"seed {', '.join(twice)} more than once, and each run counts")
        setting.notes[:0] = notes


def _words(setting: Setting, keys: Sequence[str]) -> str:
    """The values of some keys, with the key where it names no part."""
    return ", ".join(
        brief(value)
        if key in setting.runs[0].choices and value != "null"
        else f"{key}={brief(value)}"
        for key in keys
        if (value := setting.values[key]) != NONE
    )


def short_labels(settings: Sequence[Setting]) -> list[str]:
    """A label for each setting, from as few keys as distinguish all of them: a greedy choice, which
    adds the key that separates most settings. Empty if it would be longer than SHORT."""
    keys: list[str] = []

    def groups(*added: str) -> int:
        """How many groups of settings the chosen keys and these separate."""
        return len({tuple(s.values[key] for key in (*keys, *added)) for s in settings})

    while groups() < len(settings):
        best = max(settings[0].values, key=groups)
        if groups(best) == groups():  # the rest cannot be distinguished
            break
        keys.append(best)
    order = list(settings[0].values) if settings else []
    labels = [_words(setting, sorted(keys, key=order.index)) for setting in settings]
    labels = labels if keys else [setting.label for setting in settings]
    return [label if len(label) <= SHORT else "" for label in labels]


def _statistic(comparison: Comparison, setting: Setting, measure: str) -> Statistic | None:
    """The statistic over the runs that are done, or over all if none is."""
    done = [run for run in setting.distinct if run.state == "done"]
    found = [(run, comparison.figures(run)) for run in done or setting.distinct]
    having = [(run, values[measure]) for run, values in found if measure in values]
    if not having:
        return None
    counted = _of_subjects(comparison, having, measure)
    values = [value for _, value in counted]
    if len(values) < len(having) and SAME_PICTURES not in setting.notes:
        setting.notes.append(SAME_PICTURES)
    score = comparison.rulers.score(having[0][0], measure)
    seeds = Counter(str(run.seed) for run, _ in counted)
    by_seed = {str(run.seed): value for run, value in counted if seeds[str(run.seed)] == 1}
    return Statistic(*interval(values), len(values), not done, score=score, by_seed=by_seed)


def _of_subjects(
    comparison: Comparison, having: Sequence[tuple[RunRecord, float]], measure: str
) -> list[tuple[RunRecord, float]]:
    """One value for each subject: two scores of the same pictures say nothing of their spread."""
    found: dict[object, tuple[RunRecord, float]] = {}
    for run, value in having:
        score = comparison.rulers.score(run, measure)
        subject = None if score is None else ident(score.subject)
        found.setdefault(subject or id(run), (run, value))
    return list(found.values())


def _mark_best(comparison: Comparison) -> int:
    """Mark the best settings of each measure; return the number of incomparable kinds of loss."""
    sorts: dict[tuple[str, ...], list[Setting]] = {}
    for setting in comparison.settings:
        flat = config_diff.settings(setting.runs[0])
        meaning = [config_diff.text(v) for k, v in flat.items() if _meaning(k)]
        sorts.setdefault(tuple(meaning), []).append(setting)
    for measure in comparison.measures:
        sign = comparison.direction(measure)
        is_loss = measure.startswith(("loss", "eval/loss"))
        with_ruler = measure in comparison.rulers.better
        for group in sorts.values() if is_loss and not with_ruler else [comparison.settings]:
            found = [(s, s.statistics[measure]) for s in group if measure in s.statistics]
            found = [(s, statistic) for s, statistic in found if not statistic.so_far]
            if sign and len(found) > 1:
                _mark([setting for setting, _ in found], measure, sign)
    with_loss = [g for g in sorts.values() if any("loss" in s.statistics for s in g)]
    return len(with_loss)


def _mark(settings: Sequence[Setting], measure: str, sign: int) -> None:
    """Mark the best mean of a measure, the differences of the others from it over common seeds,
    and what is printed bold: the best mean and all that are not shown to be worse by such a
    difference. Nothing is bold where the best shares two seeds with none, as with one run of each.
    """
    best = max(settings, key=lambda setting: sign * setting.statistics[measure].mean)
    top = best.statistics[measure]
    differences = [
        None if s is best else paired(s.statistics[measure].by_seed, top.by_seed) for s in settings
    ]
    known = any(difference is not None for difference in differences)
    for setting, difference in zip(settings, differences, strict=True):
        tied = difference is not None and not difference.is_worse(sign)
        setting.statistics[measure] = replace(
            setting.statistics[measure],
            best=setting is best,
            bold=tied or (known and setting is best),
            from_best=difference,
        )


def _meaning(key: str) -> bool:
    return key in LOSS_DEPENDS_ON or within(
        key, ("schedule", "objective", "weighting", "timesteps")
    )


def _notes(comparison: Comparison, sorts_of_loss: int) -> list[str]:
    """Notes on the comparison as a whole."""
    notes = []
    if sorts_of_loss > 1:
        notes.append(
            "Losses of different data, schedules, objectives or weightings are not comparable: the "
            "best is marked within each group of comparable ones."
        )
    notes += comparison.rulers.notes
    notes += [f"{s.label}: {note}." for s in comparison.settings for note in s.notes]
    commits = {run.code[0] for run in comparison.runs} - {None}
    if len(commits) > 1:
        notes.append(f"The runs were made by {len(commits)} commits of the code.")
    if dirty := sum(run.code[1] for run in comparison.runs):
        were = "run was" if dirty == 1 else "runs were"
        notes.append(f"{dirty} {were} made by code with uncommitted changes.")
    for run in comparison.runs:
        notes += [f"{comparison.names[run.folder]}: {problem}." for problem in run.problems]
        if not run.config and not run.problems:
            notes.append(f"{comparison.names[run.folder]}: it left no configuration.")
    return notes


def brief(value: str, limit: int = 48) -> str:
    """The end of a text that is too long for a cell: paths differ at the end."""
    return value if len(value) <= limit else f"…{value[1 - limit :]}"


def _names(runs: Sequence[RunRecord]) -> dict[Path, str]:
    """The folders' names, with as many parents as make them unique."""
    folders = [run.folder for run in runs]
    for depth in range(1, max((len(f.parts) for f in folders), default=0) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return dict(zip(folders, names, strict=True))
    return {folder: str(folder) for folder in folders}
