"""The last part of job=evaluate: metrics become scores with passports, files, and a table."""

from collections.abc import Sequence

from lightning_fabric import Fabric

from ddpm.errors import InputError
from ddpm.evaluation import passports
from ddpm.evaluation.reference import Reference
from ddpm.features.base import Features
from ddpm.images import enlarge
from ddpm.jobs.sources import Source
from ddpm.metrics.base import Material, Metric
from ddpm.runner.distributed.fabric import describe
from ddpm.runner.execution.run import Run
from ddpm.runner.report import score_page
from ddpm.runner.report.score_table import table
from ddpm.runner.runs import scores
from ddpm.runner.runs.scores import Scored
from ddpm.runner.safe_io import atomic
from ddpm.runner.terminal import shell


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
            hparams = self.run.plan.hparams
            environment = passports.environment(self.device, began)
            environment["command"] = shell.command(*hparams["overrides"])
            found += [
                passports.scored(
                    score,
                    self.source.step,
                    passports.ruler(metric, score, self.features, self.references, hparams),
                    subject,
                    environment,
                )
                for score in measured
            ]
            self.offer(metric)
        scores.write(self.run.dir, found)
        self.run.log(self.run.step, scores.values(found))
        self.run.say(table(found))
        if found:
            score_page.write(self.run.dir, found)
            self.run.say(f"page     {self.run.dir / score_page.FILE}")
        if failed:
            raise InputError("\n".join(failed))

    def offer(self, metric: Metric) -> None:
        """Write the pictures and tables of a metric that offers any."""
        for name, picture in metric.pictures().items():
            self.run.log_grid(self.run.step, enlarge(picture), name=name)
        for name, text in metric.tables().items():
            atomic.write(self.run.dir / f"{name}.csv", text)
