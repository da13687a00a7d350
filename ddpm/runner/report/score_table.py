"""Scores as text: a table of one evaluation, and of two that compare."""

import math
from collections.abc import Mapping, Sequence

from ddpm.runner.report.stats import NONE, number
from ddpm.runner.runs.scores import Key, Scored, described_differences, differences
from ddpm.statistics.student import student_95

SHARE = "share"  # the unit of what is shown in percent
OF_SAMPLES = (
    "Intervals are of the samples: other seeds of the same training may differ by more. To compare "
    "settings, train several seeds of each: job=report."
)


def table(found: Sequence[Scored]) -> str:
    """One line for each score: value, interval, floor, and what the floor says."""
    head = ("score", "value", "95 % interval", "floor", "n", "better", "against", "ruler")
    rows = [
        (
            score.name,
            with_unit(score),
            interval(score),
            floor(score),
            f"{score.n:,}",
            score.better,
            score.reference or NONE,
            score.ruler_id or "unknown",
        )
        for score in found
    ]
    return aligned([head, *rows])


def stated(score: Scored) -> str:
    """A score as it is published: `kd_mnist 0.12 (95 % interval 0.10 to 0.14), floor 0.01, ...`."""
    parts = [f"{score.name} {with_unit(score)}"]
    if score.low is not None and score.high is not None:
        parts[0] += f" (95 % interval {ends(score)})"
    parts += [f"floor {floor(score)}"] if score.floor is not None else []
    parts += [f"n = {score.n:,}"]
    parts += [f"against {score.reference}"] if score.reference else []
    return ", ".join([*parts, f"ruler {score.ruler_id or 'unknown'}"])


def comparison(
    names: Sequence[str],
    found: Sequence[Mapping[Key, Scored]],
    common: Sequence[Key],
    unlike: Mapping[Key, Sequence[str]],
) -> str:
    """The evaluations, in what they differ from the first, and their scores beside each other.

    Args:
        names: of the evaluations.
        common: the scores to show.
        unlike: of those, the ones with unlike rulers, and the fields: they are not ranked.
    """
    letters = [chr(ord("a") + i % 26) for i in range(len(names))]
    first = next(iter(found[0].values()))
    lines = [f"{letters[0]}  {names[0]}"]
    for letter, name, of in list(zip(letters, names, found, strict=True))[1:]:
        subject = next(iter(of.values())).subject
        lines.append(
            f"{letter}  {name} ({described_differences(first.subject, subject) or 'equal'})"
        )
    trained = {next(iter(of.values())).subject.get("run") for of in found} - {None, "none"}
    lines += [OF_SAMPLES] if len(trained) > 1 else []
    head = ["score", *letters, "floor"]
    head += [f"{letter} - a, 95 % interval" for letter in letters[1:]] + ["better"]
    rows = [head]
    for key in common:
        row = [of[key] for of in found]
        label = key[0] if key[1] in (None, "train") else f"{key[0]}, {key[1]}"
        cells = [label, *map(with_unit, row), floor(row[0])]
        if key in unlike:
            cells += ["unlike rulers"] * (len(names) - 1) + [f"differ: {', '.join(unlike[key])}"]
        else:
            cells += [difference(row[0], other) for other in row[1:]] + [verdict(row, letters)]
        rows.append(cells)
    return "\n".join([*lines, "", aligned(rows)])


def difference(one: Scored, other: Scored) -> str:
    """The difference of two scores and its interval: `-0.012 (-0.020 to -0.004, paired)`; that of
    shares in percentage points."""
    times, unit = (100, " points") if one.unit == SHARE else (1, "")
    delta, bounds = times * (other.value - one.value), bounds_of_difference(one, other)
    if bounds is None:
        return number(delta) + unit
    low, high = (number(times * bound) for bound in bounds)
    note = ", paired" if paired_bounds(one, other) else ""
    return f"{number(delta)}{unit} ({low} to {high}{note})"


def paired_bounds(one: Scored, other: Scored) -> tuple[float, float] | None:
    """The 95 % interval of other - one for pictures of equal seeds, which vary together: by the
    jackknife over equal groups of them. None: the seeds differ, the metric has no groups, or the
    groups of a share are all alike, as with 0 % twice: then their spread is unknown, not 0."""
    a, b = one.without or [], other.without or []
    seeds = one.subject.get("seeds"), other.subject.get("seeds")
    if len(a) < 2 or len(a) != len(b) or differences({"seeds": seeds[0]}, {"seeds": seeds[1]}):
        return None
    deltas = [y - x for x, y in zip(a, b, strict=True)]
    g, mean = len(deltas), math.fsum(deltas) / len(deltas)
    error = math.sqrt((g - 1) / g * math.fsum((d - mean) ** 2 for d in deltas))
    if error == 0 and one.unit == SHARE and differences(one.subject, other.subject):
        return None
    half, delta = student_95(g - 1) * error, other.value - one.value
    return delta - half, delta + half


def bounds_of_difference(one: Scored, other: Scored) -> tuple[float, float] | None:
    """The 95 % interval of other - one: paired if it can be; else from the intervals of both, taken
    as independent: Donner & Zou 2012, Eq. 2 (MOVER)."""
    if (paired := paired_bounds(one, other)) is not None:
        return paired
    if None in (one.low, one.high, other.low, other.high):
        return None
    assert one.low is not None and one.high is not None  # noqa: PT018
    assert other.low is not None and other.high is not None  # noqa: PT018
    delta = other.value - one.value
    below = math.hypot(other.value - other.low, one.high - one.value)
    above = math.hypot(other.high - other.value, one.value - one.low)
    return delta - below, delta + above


def verdict(row: Sequence[Scored], letters: Sequence[str]) -> str:
    """Which is better, where the interval of its difference from all others leaves out 0."""
    sign = row[0].sign
    if not sign:
        return NONE
    best = max(range(len(row)), key=lambda i: sign * row[i].value)
    for i, other in enumerate(row):
        if i != best:
            bounds = bounds_of_difference(row[best], other)
            if bounds is None or bounds[0] <= 0 <= bounds[1]:
                return "not settled"
    return letters[best]


def with_unit(score: Scored) -> str:
    if score.unit == SHARE:
        return percent(score.value)
    return f"{number(score.value)} {score.unit}".rstrip()


def floor(score: Scored) -> str:
    return percent(score.floor) if score.unit == SHARE else number(score.floor)


def percent(share: float | None) -> str:
    """`95.4 %`, with a second decimal below 1 and above 99: `0.15 %`; exactly `0 %` and `100 %`."""
    if share is None:
        return NONE
    value = 100 * share
    places = 0 if value in (0, 100) else 1 if 1 <= value <= 99 else 2
    return f"{value:.{places}f} %"


def interval(score: Scored) -> str:
    """`0.12 to 0.15`, with a note where the samples are as good as real pictures."""
    if score.low is None or score.high is None:
        return NONE
    note = " (as good as real)" if score.as_good_as_real else ""
    return f"{ends(score)}{note}"


def ends(score: Scored) -> str:
    """`0.12 to 0.15`, or `94.0 to 96.0 %`."""
    if score.unit == SHARE:
        return f"{percent(score.low).removesuffix(' %')} to {percent(score.high)}"
    return f"{number(score.low)} to {number(score.high)}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
