"""job=evaluate: scores of a checkpoint, or of a folder of pictures, against real ones.

Each batch is a file on the disk, and existing ones are not drawn again: the same command continues
a stopped evaluation, and gives the same scores to the bit. These do not depend on the number of
processes either: all of them draw, and the first one measures.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm.data.base import ImageData
from ddpm.evaluation import cost
from ddpm.evaluation.needs import check_needs, needs_of
from ddpm.evaluation.reference import BATCH, Reference, load, references_of, save
from ddpm.evaluation.stored_batches import SAMPLES, Item, StoredBatches
from ddpm.features.base import Features
from ddpm.images import enlarge, make_grid, side_by_side
from ddpm.jobs.sampling import (
    GRID,
    PipelineParts,
    check_shared_folder,
    compile_if_it_pays,
    rank_batches,
    stop_requested,
)
from ddpm.jobs.scoring import write_scores
from ddpm.jobs.sources import DrawnPictures, FoundPictures, Source
from ddpm.metrics.base import Material, Metric, Pictures
from ddpm.pipeline import split
from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.distributed.signals import GracefulStop
from ddpm.runner.execution.run import Run
from ddpm.runner.safe_io.failpoint import crashpoint
from ddpm.runner.terminal.progress import Progress, clock


def evaluate(
    *,
    run: Run,
    fabric: Fabric,
    pipeline: PipelineParts | None,
    data: ImageData,
    features: Features,
    metrics: dict[str, Metric],
    weights: str,
    labels: Sequence[int] | None,
    num_samples: int,
    num_reference: int | None,
    first_seed: int,
    batch_size: int,
    compile: bool | str,
) -> None:
    """Write `scores.jsonl`, `grid.png`, and the pictures and tables that the metrics offer; the
    samples and their features stay in the folder. conf/job/evaluate.yaml explains the arguments.

    Raises:
        InputError: a metric needs what is not there, or the pictures do not fit the reference.
    """
    seed = run.plan.config["seed"]
    data.prepare()
    loaded = None if pipeline is None else pipeline.load(run, fabric, weights)
    references = references_of(data, num_reference, seed)
    source: Source
    if loaded is not None:
        source = DrawnPictures(
            run, loaded, weights=weights, labels=labels, n=num_samples, first_seed=first_seed
        )
    else:
        source = FoundPictures(Path(run.plan.config["samples"]), data, num_samples, seed)
    check_needs(
        metrics,
        features,
        data,
        source.n,
        has_network=loaded is not None,
        real={role: len(reference) for role, reference in references.items()},
    )
    needs = needs_of(metrics)
    material = Material(Pictures(torch.empty(0)), None, labelled=data.conditional)
    if loaded is not None:
        full = num_samples // (batch_size * fabric.world_size)
        compile_if_it_pays(loaded, compile, full, batch_size)
        raw = raw_network(run, loaded.model, weights) if "network" in needs else None
        material = replace(
            material, network=loaded.model, diffusion=loaded.diffusion, raw_network=raw
        )
    Evaluation(
        run=run,
        fabric=fabric,
        source=source,
        references=references,
        features=features.to(fabric.device) if needs & {"features", "classes"} else None,
        metrics=metrics,
        batch_size=batch_size,
        draws=bool(needs - {"network", "held_out"}),
        material=material,
    ).run_all()


class RunFiles(StoredBatches):
    """In the folder of the run, where they stay."""

    def images_file(self, batch: range) -> Path:
        return self.folder / "samples" / f"{_span(batch)}.npy"

    def features_file(self, role: str, batch: range) -> Path:
        return self.folder / f"features-{self.features_id}" / f"{role}-{_span(batch)}.npy"


def _span(batch: range) -> str:
    return f"{batch.start:07d}-{batch.stop - 1:07d}"


@dataclass
class Evaluation:
    """Draws the pictures, describes them by features, and measures.

    Args:
        source: of the pictures to score.
        features: None: no metric needs any.
        draws: whether any metric looks at pictures.
        material: the input of the metrics, still without pictures and features.
    """

    run: Run
    fabric: Fabric
    source: Source
    references: dict[str, Reference]
    features: Features | None
    metrics: dict[str, Metric]
    batch_size: int
    draws: bool
    material: Material

    def run_all(self) -> None:
        """Draw what is missing, then measure."""
        began = time.monotonic()
        with GracefulStop() as signals, self.run.begin():
            check_shared_folder(self.run, self.fabric, len(self.batches))
            self.announce()
            todo = rank_batches(self.fabric.broadcast(self.missing()), self.fabric)
            total = sum(len(batch) for _, batch in todo)
            with Progress(total, unit="image", enabled=self.run.leads) as progress:
                done = 0
                for role, batch in todo:
                    if signals.wanted:
                        break
                    self.produce(role, batch)
                    done += len(batch)
                    progress.reach(done)
                    progress.show(done, "drawn and described")
            if not stop_requested(self.run, self.fabric, signals) and self.run.leads:
                self.finish(began)
            self.fabric.barrier()

    @cached_property
    def stored(self) -> StoredBatches:
        return RunFiles(self.run.dir, self.features)

    @cached_property
    def batches(self) -> list[range]:
        return split(range(self.source.n if self.draws else 0), self.batch_size)

    def missing(self) -> list[Item]:
        return self.stored.missing(self.batches, self.references)

    def announce(self) -> None:
        """Say what there is to do, and how long it will take. What one process does alone counts
        whole: training features, and the metrics' own network evaluations."""
        shared, alone = 0.0, 0.0
        if isinstance(self.source, FoundPictures):
            found = f"{self.source.n:,} of {self.source.found:,} in {self.source.path}"
            self.run.say(f"samples  {found}")
        elif isinstance(self.source, DrawnPictures):
            drawn, measured = self.announce_network(self.source)
            size, labels = min(self.batch_size, self.source.n), self.source.labels
            call = cost.network_call(self.source.pipeline, size, labels)
            if drawn or measured:
                each = cost.seconds_per_picture(call, size, self.fabric.device)
                shared, alone = drawn * each, measured * each
        if self.features is not None:
            shared += self.announce_features(self.features)
            alone += self.features.seconds_to_train()
        if total := shared / self.fabric.world_size + alone:
            self.run.say(f"time     about {clock(max(1, total))}, then the scores")

    def announce_network(self, source: DrawnPictures) -> tuple[int, int]:
        """Say what the network has to do; return its evaluations for missing pictures, and for
        metrics."""
        self.run.say(f"weights  {source.weights} of {self.run.path}, step {self.run.step}")
        drawn = 0
        if self.draws:
            missing = sum(len(b) for b in self.batches if not self.stored.has_images(b))
            drawn = missing * source.evaluations
            self.run.say(
                f"draws    {missing:,} pictures ({source.n - missing:,} are there), "
                f"{source.evaluations:,} network evaluations each: {drawn:,} in all"
            )
        of = {k: m.evaluations(source.pipeline.diffusion.T) for k, m in self.metrics.items()}
        if names := [name for name, count in of.items() if count]:
            self.run.say(
                f"measures {', '.join(names)} by up to {sum(of.values()):,} network evaluations"
            )
        return drawn, sum(of.values())

    def announce_features(self, features: Features) -> float:
        """Seconds to read the pictures that have no features yet, and to compute these."""
        train = self.references["train"]
        untrained, pictures = features.stand_in(), min(BATCH, len(train))
        todo = [batch for batch in self.batches if untrained or not self.stored.has_samples(batch)]
        samples = sum(map(len, todo))
        if untrained is not None:
            real = sum(map(len, self.references.values()))
        else:
            real = sum(len(b) for role, b in self.missing() if role != SAMPLES)
        first = " (trained first)" if untrained else ""
        self.run.say(
            f"features {features.name}{first} of {samples:,} samples, {real:,} real pictures"
        )
        describe = untrained or features

        def call() -> object:
            return describe(train.images(range(pictures)))

        if not samples + real:
            return 0.0
        return (samples + real) * cost.seconds_per_picture(call, pictures, self.fabric.device)

    def produce(self, role: str, batch: range) -> None:
        """Draw a batch of samples, or read one of a reference, and describe it by features."""
        if role != SAMPLES:
            self.describe(role, batch, self.references[role].images(batch))
            return
        file = self.stored.images_file(batch)
        if (drawn := load(file)) is None:
            drawn = self.source.images(batch).numpy()
            save(file, drawn)
            crashpoint("evaluate.drawn")
        self.describe(SAMPLES, batch, torch.from_numpy(drawn))

    def describe(self, role: str, batch: range, images: Tensor) -> None:
        if self.features is not None:
            save(self.stored.features_file(role, batch), self.features(images).numpy())
            crashpoint("evaluate.described")

    def collect(self) -> Material:
        """The input of the metrics, with all pictures and features, read from the disk."""
        samples = self.stored.samples(self.batches, self.source.labels) if self.draws else None
        real = {
            role: reference.pictures(self.stored.features_of(reference))
            for role, reference in self.references.items()
        }
        return replace(
            self.material,
            train=real["train"],
            held_out=real.get("held_out"),
            samples=samples,
            features=self.features,
        )

    def finish(self, began: float) -> None:
        """Measure, write, log and print."""
        material = self.collect()
        if material.samples is not None:
            grid = make_grid(side_by_side(material.samples.images[:GRID]))
            self.run.log_grid(self.run.step, enlarge(grid), name="grid")
        write_scores(self.run, self.source, self.references, self.metrics, material, began)


def raw_network(run: Run, network: nn.Module, weights: str) -> nn.Module | None:
    """The network with the weights that are not averaged, if the checkpoint has them and averaged
    ones are measured."""
    if weights == "model" or run.state is None or "model" not in run.state:
        return None
    assert run.path is not None
    network = copy.deepcopy(network)
    checkpoint.load_weights(network, run.state["model"], run.path)
    return network
