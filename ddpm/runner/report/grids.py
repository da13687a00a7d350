"""Grids of samples: chosen at comparable steps and reduced to the size of a page."""

import base64
import io
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from ddpm.data.decode import OutOfReach, Unreadable, convert, open_image
from ddpm.errors import shown
from ddpm.runner.report.comparison import Comparison
from ddpm.runner.report.run_record import RunRecord

BUDGET = 12 * 1024**2  # bytes of all images of a page; base64 adds a third
LARGEST = 768  # pixels of a side
MAX_SIDE = 16_384  # of a file that is opened
_LOSSLESS = 256 * 256  # pixels; larger images become lossy WebP
_LARGEST_SQUARE = 16


@dataclass(frozen=True)
class Grid:
    """An image of a run. `step` is None for the samples of a sampling job."""

    run: int
    setting: int
    file: Path
    step: int | None
    caption: str
    data: str = ""
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Group:
    """Images shown side by side."""

    title: str
    grids: list[Grid]


def groups(comparison: Comparison) -> list[Group]:
    """Previews grouped by seed, at a common step if there is one; then the samples."""
    step = _common_step(comparison)
    found: dict[str, list[Grid]] = {}
    for i, run in enumerate(comparison.runs):
        setting = comparison.setting_of(run)
        number = comparison.number_of(run)
        label = setting.label if setting else comparison.names[run.folder]
        if run.pictures:
            at = max((s for s in run.pictures if step is None or s <= step), default=None)
            at = min(run.pictures) if at is None else at
            grid = Grid(i, number, run.pictures[at], at, f"{label}, step {at:,}")
            found.setdefault(_seed(run), []).append(grid)
        if run.grid is not None:
            grid = Grid(i, number, run.grid, None, label)
            found.setdefault(f"Drawn by job={run.job}", []).append(grid)
    return [Group(title, grids) for title, grids in found.items()]


def _seed(run: RunRecord) -> str:
    return "Seed unknown" if run.seed is None else f"Seed {shown(run.seed)}"


def _common_step(comparison: Comparison) -> int | None:
    """The last step for which every finished run has a preview."""
    done = [set(r.pictures) for r in comparison.runs if r.pictures and r.state == "done"]
    return max(set.intersection(*done), default=None) if done else None


def embedded(found: list[Group]) -> tuple[list[Group], list[str]]:
    """The groups with images as `data:` URIs, and a message for each damaged image.

    If the total size exceeds the budget, all images are reduced by the same factor.
    """
    problems: dict[Path, str] = {}
    files = [grid.file for group in found for grid in group.grids]
    side = LARGEST
    while True:
        with ThreadPoolExecutor() as pool:  # Pillow releases the GIL
            drawn = pool.map(lambda file, side=side: encoded(file, side, problems), files)
            made = {f: p for f, p in zip(files, drawn, strict=True) if p is not None}
        size = sum(len(data) for _, data, _ in made.values())
        if size <= BUDGET or side <= 64:
            break
        side = max(64, int(side * min(0.8, math.sqrt(BUDGET / size))))
    result = []
    for group in found:
        grids = [_filled(grid, *made[grid.file]) for grid in group.grids if grid.file in made]
        if grids:
            result.append(Group(group.title, grids))
    return result, list(problems.values())


def _filled(grid: Grid, kind: str, data: bytes, size: tuple[int, int]) -> Grid:
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return replace(grid, data=uri, width=size[0], height=size[1])


def encoded(
    file: Path, side: int, problems: dict[Path, str]
) -> tuple[str, bytes, tuple[int, int]] | None:
    """Format, bytes and size of an image of at most `side` x `side` pixels. It is encoded anew, so
    only the pixels of the untrusted file remain."""
    try:
        with open_image(file) as image:
            if max(image.size) > MAX_SIDE:
                raise Unreadable(file, f"{image.width} x {image.height} pixels")
            picture = convert(image, "L" if image.mode in ("1", "L") else "RGB", 255)
    except (Unreadable, OutOfReach) as error:
        problems[file] = f"{file.parent.parent.name}: {file.name} cannot be read ({error.reason})."
        return None
    except Exception as error:  # decoders raise many types of errors
        problems[file] = f"{file.parent.parent.name}: {file.name} cannot be read ({shown(error)})."
        return None
    picture = _reduced(picture)
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    data, kind = io.BytesIO(), "webp" if picture.width * picture.height > _LOSSLESS else "png"
    picture.save(data, format=kind, **({"quality": 88, "method": 2} if kind == "webp" else {}))
    return kind, data.getvalue(), picture.size


def _reduced(picture: Image.Image) -> Image.Image:
    """An image with each k x k square of equal pixels reduced to one. Previews of small images are
    enlarged like this; the page enlarges them itself, which takes a hundredth of the bytes."""
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    for k in range(_LARGEST_SQUARE, 1, -1):
        if height % k or width % k:
            continue
        small = pixels[::k, ::k]
        if all(np.array_equal(pixels[i::k, j::k], small) for i in range(k) for j in range(k)):
            return Image.fromarray(np.ascontiguousarray(small))
    return picture


def link(path: Path, output: Path) -> str:
    """A relative link from a page in `output` to a file or folder."""
    relative = os.path.relpath(path, output)
    return quote(relative.replace(os.sep, "/"))
