"""The last part of job=evaluate: metrics become scores with passports, files, and a table."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning_fabric import Fabric

from ddpm.data.base import ImageData
from ddpm.errors import InputError
from ddpm.features.base import Features
from ddpm.images import enlarge
from ddpm.jobs.reference import Reference
from ddpm.jobs.sources import Source, part
from ddpm.metrics.base import Material, Metric, Score
from ddpm.pipeline import Pipeline
from ddpm.runner.distributed.fabric import describe
from ddpm.runner.execution.run import Run
from ddpm.runner.report.score_table import table
from ddpm.runner.runs import scores
from ddpm.runner.runs.scores import Passport, Scored, known
from ddpm.runner.safe_io import atomic
from ddpm.runner.terminal import shell


def check_needs(
    metrics: dict[str, Metric],
    features: Features,
    data: ImageData,
    pipeline: Pipeline | None,
    n: int,
    *,
    has_held_out: bool,
) -> None:
    """Check that there is what the metrics need, before anything is drawn.

    Args:
        n: number of samples.

    Raises:
        InputError: names the metric, and what is missing.
    """
    needs = frozenset().union(*(metric.needs for metric in metrics.values()))
    if needs & {"features", "classes"}:
        features.check_channels(data.channels)
    for name, metric in metrics.items():
        if "network" in metric.needs and pipeline is None:
            raise InputError(f"metric={name}: measures a network; it needs checkpoint=<run>.")
        if "held_out" in metric.needs and not has_held_out:
            raise InputError(
                f"metric={name}: needs held-out pictures, and these data have none "
                "(data.holdout=0, or the split is not train). Leave this metric out."
            )
        if "classes" in metric.needs and features.num_classes is None:
            raise InputError(
                f"metric={name}: needs features with classes, and features={features.name} has "
                "none. Choose others, or leave this metric out."
            )
        if n < metric.least:
            raise InputError(
                f"metric={name}: needs at least {metric.least} samples, and there are {n}. "
                "Draw more (job.num_samples), or leave this metric out."
            )


class Scoring:
    """Measures, and writes what comes of it into the run's folder."""

    def __init__(
        self,
        run: Run,
        fabric: Fabric,
        source: Source,
        references: Sequence[Reference],
        features: Features | None,
        metrics: dict[str, Metric],
    ) -> None:
        self.run, self.source, self.features, self.metrics = run, source, features, metrics
        self.references = {reference.role: reference for reference in references}
        self.device = describe(fabric)

    def measure(self, material: Material, began: float) -> None:
        """Measure by every metric; one that fails does not take the others' scores away.

        Raises:
            InputError: of the metrics that failed.
        """
        found: list[Scored] = []
        failed: list[str] = []
        subject = self.source.subject()
        for name, metric in self.metrics.items():
            try:
                measured = metric.measure(material)
            except InputError as error:
                failed.append(f"metric={name}: {str(error).removeprefix(f'metric={name}: ')}")
                continue
            told = self.told(began)
            found += [self.scored(metric, score, subject, told) for score in measured]
            self.offer(metric)
        scores.write(self.run.dir, found)
        values = {name: score.value for name, score in scores.logged(found).items()}
        self.run.log(self.run.step, values)
        self.run.say(table(found))
        if failed:
            raise InputError("\n".join(failed))

    def scored(self, metric: Metric, score: Score, subject: Passport, told: dict) -> Scored:
        return Scored(
            name=score.name,
            value=score.value,
            n=score.n,
            step=self.source.step,
            better=score.better,
            ruler=self.ruler(metric, score),
            subject=subject,
            low=score.low,
            high=score.high,
            floor=score.floor,
            unit=score.unit,
            reference=score.reference,
            told=told,
        )

    def ruler(self, metric: Metric, score: Score) -> Passport:
        """How a score was measured: equal ones compare."""
        uses_features = bool(metric.needs & {"features", "classes"})
        assert self.features is not None or not uses_features
        features = self.features.passport() if uses_features and self.features else None
        passports = {role: ref.passport() for role, ref in self.references.items()}
        reference = passports.get(score.reference or "", passports)
        return known(
            {
                "metric": metric.passport(),
                "features": features,
                "reference": reference,
                **({"process": self.process()} if metric.of_process else {}),
                "n": score.n,
                "quantise": True,
            }
        )

    def process(self) -> Passport:
        """What the value of a loss depends on beside the network."""
        hparams = self.run.plan.hparams
        return {group: part(hparams, group) for group in ("schedule", "objective", "weighting")}

    def told(self, began: float) -> dict[str, Any]:
        return {
            "device": self.device,
            "torch": str(torch.__version__),
            "python": sys.version.split()[0],
            "seconds": round(time.monotonic() - began, 1),
            "command": shell.command(*self.run.plan.hparams["overrides"]),
        }

    def offer(self, metric: Metric) -> None:
        """Write the pictures and tables of a metric that offers any."""
        for name, picture in metric.pictures().items():
            self.run.log_grid(self.run.step, enlarge(picture), name=name)
        for name, text in metric.tables().items():
            atomic.write(self.run.dir / f"{name}.csv", text)
