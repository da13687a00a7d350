"""Which scores of runs stand in one column: those that one ruler measured, and no others."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ddpm.runner.report.run_record import RunRecord
from ddpm.runner.runs.scores import Scored, described_differences, logged

WITHOUT = "no passport"
UNKNOWN = "unknown ruler"


@dataclass(frozen=True)
class Rulers:
    """The columns of scores.

    Args:
        columns: by run (its number) and measure, the column that its value stands in: the measure's
            name, with the ruler where there are several.
        scored: by run and column, the score with its passport, where there is one.
        better: by column, the sign of its good direction; 0: it ranks nothing.
        notes: which columns do not compare, and why.
    """

    columns: dict[tuple[int, str], str] = field(default_factory=dict)
    scored: dict[tuple[int, str], Scored] = field(default_factory=dict)
    better: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def column(self, run: RunRecord, measure: str) -> str:
        return self.columns.get((id(run), measure), measure)

    def score(self, run: RunRecord, column: str) -> Scored | None:
        return self.scored.get((id(run), column))


def of_runs(runs: Sequence[RunRecord]) -> Rulers:
    """The columns of the scores of these runs.

    Scores without a passport have a column of their own beside scores that have one, and each of
    an unknown ruler likewise: what is unknown equals nothing.
    """
    found = Rulers()
    passports = {id(run): logged(run.scores) for run in runs}
    measures = {name for run in runs for name in run.metrics if name.startswith("eval/")}
    for measure in sorted(measures | {name for of in passports.values() for name in of}):
        having = [r for r in runs if measure in r.metrics or measure in passports[id(r)]]
        groups: dict[str, list[RunRecord]] = {}
        for number, run in enumerate(having):
            score = passports[id(run)].get(measure)
            groups.setdefault(_ruler(score, number), []).append(run)
        for ruler, members in groups.items():
            column = measure if len(groups) == 1 else f"{measure} [{ruler}]"
            for run in members:
                found.columns[id(run), measure] = column
                if (score := passports[id(run)].get(measure)) is not None:
                    found.scored[id(run), column] = score
                    found.better[column] = score.sign
            if len(groups) > 1 and ruler == WITHOUT:
                found.better[column] = 0
        if len(groups) > 1:
            found.notes.append(_note(measure, groups, passports))
    return found


def _ruler(score: Scored | None, number: int) -> str:
    if score is None:
        return WITHOUT
    return score.ruler_id or f"{UNKNOWN} {number + 1}"


def _note(
    measure: str, groups: dict[str, list[RunRecord]], passports: dict[int, dict[str, Scored]]
) -> str:
    name = measure.removeprefix("eval/")
    start = f"{name} was measured by {len(groups)} rulers, which do not compare"
    rulers = [of[measure].ruler for r in groups.values() if measure in (of := passports[id(r[0])])]
    if len(rulers) < 2:
        return f"{start}."
    return f"{start} ({described_differences(rulers[0], rulers[1])})."
