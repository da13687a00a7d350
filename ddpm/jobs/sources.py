"""The pictures that job=evaluate scores: drawn from a checkpoint, or found in a folder."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ddpm.data.base import ImageData
from ddpm.data.decode import Unreadable, open_image
from ddpm.data.folder import SUFFIXES
from ddpm.errors import InputError
from ddpm.evaluation.passports import counted, part, weights_digest
from ddpm.evaluation.reference import subset
from ddpm.pipeline import Pipeline, in_turn
from ddpm.runner.execution.run import Run, made_with
from ddpm.runner.runs import run_dir
from ddpm.runner.runs.scores import Passport, known
from ddpm.runner.safe_io import listing

JOBS = ("sample", "evaluate")  # whose runs hold pictures


class Source(Protocol):
    """Pictures 0 to n - 1.

    Args:
        n: their number.
        labels: the class of each, where there are some.
        step: of the weights they were drawn with; 0: unknown.
    """

    n: int
    labels: Sequence[int] | None
    step: int

    def images(self, batch: range) -> Tensor:
        """uint8 (B, C, H, W)."""
        ...

    def subject(self) -> Passport: ...


class DrawnPictures:
    """Pictures of a checkpoint.

    Args:
        weights: "ema" or "model".
        labels: classes, used in turn.
    """

    def __init__(
        self,
        run: Run,
        pipeline: Pipeline,
        *,
        weights: str,
        labels: Sequence[int] | None,
        n: int,
        first_seed: int,
    ) -> None:
        self.run, self.pipeline, self.weights = run, pipeline, weights
        self.n, self.first_seed, self.step = n, first_seed, run.step
        self.labels: Sequence[int] | None = in_turn(labels, self.seeds(range(n)), first_seed)

    def seeds(self, batch: range) -> range:
        return range(self.first_seed + batch.start, self.first_seed + batch.stop)

    def images(self, batch: range) -> Tensor:
        labels = None if self.labels is None else self.labels[batch.start : batch.stop]
        return self.pipeline.sample_seeds(self.seeds(batch), labels)

    @cached_property
    def evaluations(self) -> int:
        return self.pipeline.evaluations(None if self.labels is None else self.labels[0])

    def subject(self) -> Passport:
        hparams, diffusion = self.run.plan.hparams, self.pipeline.diffusion
        source = hparams.get("source")
        counts = None if self.labels is None else counted(self.labels)
        return known(
            {
                "run": source["run_id"] if isinstance(source, dict) else None,
                "checkpoint": weights_digest(self.run.state or {}, self.weights),
                "step": self.step,
                "weights": self.weights,
                "sampler": part(hparams, "sampler"),
                "evaluations": self.evaluations,
                "guidance": part(hparams, "guidance"),
                "labels": counts,
                "seeds": {"first": self.first_seed, "n": self.n},
                "clip": diffusion.clip,
                "precision": made_with(self.run.fabric)["precision"],
            }
        )


class FoundPictures:
    """Pictures in a folder, or those of a run of job=sample or job=evaluate.

    Args:
        path: the folder.
        data: the reference, of the same size and channels.
        most: if there are more, so many are drawn by the seed.

    Raises:
        InputError: there are none, or they have another size.
    """

    def __init__(self, path: Path, data: ImageData, most: int, seed: int) -> None:
        self.path, self.data, self.step = path, data, 0
        self.labels: Sequence[int] | None = None
        self.config = _run_config(path)
        self.arrays: Tensor | None = None
        self.files: list[Path] = []
        if self.config and self.config["choices"].get("job") == "evaluate":
            self.arrays = _arrays(path)
            total = len(self.arrays)
            self._check(self.arrays.shape[-2:], self.arrays.shape[1], path)
        else:
            folder = path / "samples" if self.config else path
            self.files = _pictures(folder)
            self._read(self.files[0])  # before anything is written
            total = len(self.files)
        self.found = total
        self.chosen = subset(total, most, seed)
        self.n = len(self.chosen)

    def images(self, batch: range) -> Tensor:
        chosen = self.chosen[batch.start : batch.stop]
        if self.arrays is not None:
            return self.arrays[chosen]
        return torch.stack([self._read(self.files[index]) for index in chosen])

    def _read(self, file: Path) -> Tensor:
        try:
            with open_image(file) as picture:
                grey = picture.mode in ("1", "L", "LA")
                self._check((picture.height, picture.width), 1 if grey else 3, file)
                pixels = np.array(picture.convert("L" if self.data.channels == 1 else "RGB"))
        except Unreadable as error:
            raise InputError(f"samples: cannot read {str(file)!r} ({error.reason}).") from error
        except InputError:
            raise
        except (OSError, SyntaxError, ValueError) as error:  # damaged in the middle
            raise InputError(f"samples: cannot read {str(file)!r} ({error}).") from error
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)

    def _check(self, size: Sequence[int], channels: int, path: Path) -> None:
        height, width = self.data.shape[1:]
        if tuple(size) != (height, width):
            remedy = f"set data.image_size={size[0]}" if size[0] == size[1] else "scale them first"
            raise InputError(
                f"samples: {str(path)!r} has {size[1]}x{size[0]} pixels, and the reference "
                f"data={self.data.name} has {width}x{height}; {remedy}."
            )
        if channels > self.data.channels:
            raise InputError(
                f"samples: {str(path)!r} is in colour, and the reference data={self.data.name} is "
                "grey (data.channels=1)."
            )

    def subject(self) -> Passport:
        """Without a checkpoint: the digest of all pixels pins the pictures."""
        passport: dict[str, Any] = {"pictures": self.digest, "n": self.n}
        if self.config is None:
            return known({"folder": self.path.name, **passport})
        source = self.config.get("source")
        return known(
            {
                **passport,
                "run": source["run_id"] if isinstance(source, dict) else None,
                "step": source["step"] if isinstance(source, dict) else None,
                "weights": self.config["job"].get("weights"),
                "sampler": part(self.config, "sampler"),
                "guidance": part(self.config, "guidance"),
                "labels": self.config["job"].get("labels"),
                "seeds": {"first": self.config["job"].get("first_seed"), "n": self.found},
            }
        )

    @cached_property
    def digest(self) -> str:
        """A digest of the pixels, in order: 12 hex digits."""
        found = hashlib.sha256()
        for start in range(0, self.n, 256):
            found.update(self.images(range(start, min(start + 256, self.n))).numpy().tobytes())
        return found.hexdigest()[:12]


def _run_config(path: Path) -> dict[str, Any] | None:
    """The configuration of the run in a folder; None: it holds no run.

    Raises:
        InputError: there is no such folder, or its run has no pictures.
    """
    if not path.is_dir():
        raise InputError(f"samples={path}: there is no such folder.")
    if not listing.exists(path / "config.yaml"):
        return None
    config = run_dir.read_config(path)
    job = config["choices"].get("job")
    if job not in JOBS:
        raise InputError(
            f"samples={path}: a run of job={job}; it must be of job={' or job='.join(JOBS)}, or a "
            "folder of pictures. To score what was trained: checkpoint=<run>."
        )
    return config


def _pictures(folder: Path) -> list[Path]:
    paths = listing.below(folder, "*") if folder.is_dir() else []
    files = [path for path in paths if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    if not files:
        raise InputError(
            f"samples: no pictures in {str(folder)!r}. Supported are {', '.join(SUFFIXES)}, also "
            "in subfolders."
        )
    return sorted(files)


def _arrays(path: Path) -> Tensor:
    files = sorted(listing.paths(path / "samples", "*.npy"))
    if not files or run_dir.read_status(path).get("state") != "done":
        raise InputError(f"samples={path}: the run is not done; repeat its command first.")
    return torch.cat([torch.from_numpy(np.load(file)) for file in files])
