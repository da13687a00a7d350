"""Scores of samples during training: job.evaluate_every.

Samples and features are files in the run's folder, so that a stopped evaluation continues where it
was. The name of their folder holds a digest of the weights: those of other weights are not used.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm.errors import InputError
from ddpm.evaluation import passports
from ddpm.evaluation.reference import Reference, save
from ddpm.evaluation.stored_batches import SAMPLES, Item, StoredBatches
from ddpm.features.base import Features
from ddpm.metrics.base import Material, Metric
from ddpm.pipeline import Pipeline, in_turn, split
from ddpm.runner.distributed.fabric import describe
from ddpm.runner.distributed.fsdp import gather, is_sharded
from ddpm.runner.execution.run import Run, made_with
from ddpm.runner.runs import scores
from ddpm.runner.runs.scores import Passport, Scored
from ddpm.runner.safe_io import listing
from ddpm.runner.safe_io.failpoint import crashpoint

logger = logging.getLogger(__name__)

BATCH = 64
FIRST_SEED = 2_000_000  # neither those of previews, nor those of job=evaluate
FOLDER = "evaluation"
HELD_OUT = "_held_out"  # ends the name of a metric against held-out pictures


class StepFiles(StoredBatches):
    """In a folder of one step and its weights, which is deleted after measuring."""

    def images_file(self, batch: range) -> Path:
        return self.folder / f"images-samples-{batch.start:07d}.npy"

    def features_file(self, role: str, batch: range) -> Path:
        return self.folder / f"features-{role}-{batch.start:07d}.npy"


@dataclass
class PeriodicEvaluation:
    """Draws samples with the averaged network and scores them. Draws no random number of training.

    Args:
        features: None: no metric needs any.
        references: real pictures, by their roles: train, held_out.
        pipeline: from a network to a pipeline that draws with it.
        labels: classes, used in turn; None: none.
        every: steps between evaluations.
        n: number of samples.
        sampler: that draws them, for passports.
        total: steps of the run; the last one is evaluated, too.
    """

    run: Run
    fabric: Fabric
    features: Features | None
    metrics: dict[str, Metric]
    references: dict[str, Reference]
    pipeline: Callable[[nn.Module], Pipeline]
    labels: Sequence[int] | None
    every: int
    n: int
    sampler: Passport
    total: int
    memo: dict[str, Tensor | None] = field(default_factory=dict)

    def is_due(self, step: int) -> bool:
        return step > 0 and (step % self.every == 0 or step == self.total)

    @cached_property
    def batches(self) -> list[range]:
        return split(range(self.n), BATCH)

    def __call__(
        self, step: int, network: nn.Module, asked_to_stop: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Metrics after `step` steps. Collective: all ranks call it and get the same.

        Args:
            network: the averaged one.
            asked_to_stop: whether to stop; collective as well.

        Returns:
            None if it stopped: the files stay, and the next call continues.
        """
        digest = passports.weights_digest({"ema": gather(network.state_dict())}, "ema")
        found = self.fabric.broadcast(self.known(step, digest) if self.run.leads else None)
        if found is None:
            folder = self.run.dir / FOLDER / f"step-{step:07d}-{digest}"
            stored = StepFiles(folder, self.features)
            if not self.produce(stored, network, asked_to_stop):
                return None
            if self.run.leads:
                try:
                    found = self.measure(step, digest, stored)
                except Exception as error:  # the other ranks wait for this one
                    logger.warning("No scores of step %d; the run continues: %s", step, error)
                    found = {}
            found = self.fabric.broadcast(found)
        return found

    def known(self, step: int, digest: str) -> dict[str, float] | None:
        """The metrics of these weights, if they were measured before."""
        rows = [s for s in self.earlier() if s.step == step and s.subject["checkpoint"] == digest]
        return scores.values(rows) if rows else None

    def earlier(self) -> list[Scored]:
        if not listing.exists(self.run.dir / scores.FILE):
            return []
        with contextlib.suppress(InputError):
            return scores.read(self.run.dir)
        return []

    # drawing

    def produce(
        self, stored: StoredBatches, network: nn.Module, asked_to_stop: Callable[[], bool]
    ) -> bool:
        """Make the missing files, on all ranks; False if it stopped before all were made."""
        pipeline, ranks = self.pipeline(network), self.fabric.world_size
        todo = self.fabric.broadcast(self.missing(stored) if self.run.leads else [])
        with_all = ranks > 1 and any(map(is_sharded, network.parameters()))
        for start in range(0, len(todo), ranks):
            if asked_to_stop():
                return False
            round_of_all = todo[start : start + ranks]
            if with_all and round_of_all[0][0] == SAMPLES:  # each forward pass needs all ranks
                round_of_all += round_of_all[-1:] * (ranks - len(round_of_all))
            made = None
            if self.fabric.global_rank < len(round_of_all):
                made = self.make(round_of_all[self.fabric.global_rank], pipeline)
            for item, arrays in zip(round_of_all, self.gathered(made), strict=False):
                if self.run.leads:
                    self.keep(stored, item, arrays)
        return True

    def missing(self, stored: StoredBatches) -> list[Item]:
        """The batches without files: samples first, as sharded networks draw them together."""
        unknown = {role: of for role, of in self.references.items() if role not in self.memo}
        return stored.missing(self.batches, unknown)

    def make(self, item: Item, pipeline: Pipeline) -> list[np.ndarray]:
        """The features of a batch, if any are needed, and of samples the images, too."""
        role, batch = item
        if role == SAMPLES:
            seeds = range(FIRST_SEED + batch.start, FIRST_SEED + batch.stop)
            images = pipeline.sample_seeds(seeds, in_turn(self.labels, seeds, FIRST_SEED))
        else:
            images = self.references[role].images(batch)
        described = [] if self.features is None else [self.features(images).numpy()]
        return [*described, images.numpy()] if role == SAMPLES else described

    def gathered(self, made: Any) -> list[Any]:
        """The arrays that each rank has made, on all ranks."""
        if self.fabric.world_size == 1:
            return [made]
        of_all: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(of_all, made)
        return of_all

    def keep(self, stored: StoredBatches, item: Item, arrays: list[np.ndarray]) -> None:
        role, batch = item
        files = [] if self.features is None else [stored.features_file(role, batch)]
        files += [stored.images_file(batch)] if role == SAMPLES else []
        for file, array in zip(files, arrays, strict=True):
            save(file, array)
        crashpoint("evaluation.drawn")

    # measuring, on the first rank

    def measure(self, step: int, digest: str, stored: StoredBatches) -> dict[str, float]:
        """Measure, write the scores into the run's file, and delete the evaluation's files."""
        began, subject = time.monotonic(), self.subject(step, digest)
        material = self.collect(stored)
        found = []
        for metric in self.metrics.values():
            for score in metric.measure(material):
                hparams = self.run.plan.hparams
                ruler = passports.ruler(metric, score, self.features, self.references, hparams)
                environment = passports.environment(describe(self.fabric), began)
                found.append(passports.scored(score, step, ruler, subject, environment))
        scores.write(self.run.dir, [*(s for s in self.earlier() if s.step < step), *found])
        shutil.rmtree(self.run.dir / FOLDER, ignore_errors=True)
        crashpoint("evaluation.measured")
        return scores.values(found)

    def collect(self, stored: StoredBatches) -> Material:
        pictures = {
            role: reference.pictures(self.described(reference, stored))
            for role, reference in self.references.items()
        }
        return Material(
            train=pictures["train"],
            held_out=pictures.get("held_out"),
            samples=stored.samples(self.batches, in_turn(self.labels, range(self.n), 0)),
            features=self.features,
        )

    def described(self, reference: Reference, stored: StoredBatches) -> Tensor | None:
        """The features of a reference: the same object each time, so that metrics remember what
        they have computed of it."""
        if reference.role not in self.memo:
            self.memo[reference.role] = stored.features_of(reference)
        return self.memo[reference.role]

    def subject(self, step: int, digest: str) -> Passport:
        hparams = self.run.plan.hparams
        labels = in_turn(self.labels, range(self.n), 0)
        return scores.known(
            {
                "run": hparams["run_id"],
                "checkpoint": digest,
                "step": step,
                "weights": "ema",
                "sampler": self.sampler,
                "guidance": passports.part(hparams, "guidance"),
                "labels": None if labels is None else passports.counted(labels),
                "seeds": {"first": FIRST_SEED, "n": self.n},
                "precision": made_with(self.fabric)["precision"],
            }
        )
