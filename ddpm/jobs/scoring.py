"""The last part of job=evaluate: metrics become scores with passports, files, and a table."""

from collections.abc import Mapping

from ddpm.errors import InputError
from ddpm.evaluation import passports
from ddpm.evaluation.reference import Reference
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


def write_scores(
    run: Run,
    source: Source,
    references: Mapping[str, Reference],
    metrics: dict[str, Metric],
    material: Material,
    began: float,
) -> None:
    """Measure by every metric, and write what comes of it into the run's folder; one that fails
    does not take the others' scores away.

    Args:
        began: when the job began to draw, by `time.monotonic`.

    Raises:
        InputError: of the metrics that failed.
    """
    found: list[Scored] = []
    failed: list[str] = []
    subject, device = source.subject(), describe(run.fabric)
    for name, metric in metrics.items():
        try:
            measured = metric.measure(material)
        except InputError as error:
            failed.append(f"metric={name}: {str(error).removeprefix(f'metric={name}: ')}")
            continue
        hparams = run.plan.hparams
        environment = passports.environment(device, began)
        environment["command"] = shell.command(*hparams["overrides"])
        found += [
            passports.scored(
                score,
                source.step,
                passports.ruler(metric, score, material.features, references, hparams),
                subject,
                environment,
            )
            for score in measured
        ]
        _offer(run, metric)
    scores.write(run.dir, found)
    run.log(run.step, scores.values(found))
    run.say(table(found))
    if found:
        score_page.write(run.dir, found)
        run.say(f"page     {run.dir / score_page.FILE}")
    if failed:
        raise InputError("\n".join(failed))


def _offer(run: Run, metric: Metric) -> None:
    """Write the pictures and tables of a metric that offers any."""
    for name, picture in metric.pictures().items():
        run.log_grid(run.step, enlarge(picture), name=name)
    for name, text in metric.tables().items():
        atomic.write(run.dir / f"{name}.csv", text)
