"""Any tree of PNG, JPEG, WebP or BMP files."""

import heapq
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ddpm.data.base import ImageFiles
from ddpm.data.holdout import ALL, in_split, split_of
from ddpm.data.pictures import SUFFIXES, Pictures
from ddpm.errors import InputError, listed, shown
from ddpm.runner.runs import run_dir
from ddpm.runner.safe_io import listing

MAX_NAMED = 5  # folders or endings in a line


class Folder(Pictures):
    """The images below `root`, in the order of their paths, without hidden files and folders, and
    without run folders, whose previews do not belong to the data set.

    The folders directly below `root` are the classes if every image lies in one of them; with
    `splits=named` those below `root`/train, `root`/val and `root`/test.
    """

    name = "folder"
    classes_in = " (folders directly below data.root, if every image is in one)"

    def __init__(self, *, root: str | Path | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._has_root = bool(root)
        self.root = Path(os.path.expanduser(root)) if root else self.data_dir

    @cached_property
    def class_names(self) -> list[str] | None:
        names = [name for name, *_ in self.sources]
        if self.by_name:  # the same classes in all splits
            tree = self._tree()
            names = [self._name(Path(file)) for file in self._images(tree) if self._of(file, ALL)]
        folders = {self._inner(name).rpartition("/")[0].partition("/")[0] for name in names}
        return sorted(folders) if "" not in folders else None

    def files(self, split: str) -> list[Path]:
        try:
            tree = self._tree()
        except listing.Unreachable as error:
            raise InputError(
                f"data.root: {error}\n"
                "Its images would be missing: repair that, or choose another data.root."
            ) from error
        images, suffixes = self._images(tree), self.suffixes
        others = [file for file in tree.files if not file.lower().endswith(suffixes)]
        if images and self.by_name:
            images = self._of_split(images, split)
        if not images:
            raise InputError(
                f"data.root: no images in {str(self.root.absolute())!r} "
                f"(found: {_endings(others) or 'no files'}).\n"
                f"Supported are {', '.join(suffixes)}, also in subfolders."
            )
        cache = os.path.abspath(self.data_dir / "cache")  # may lie within `root`
        others = [file for file in others if os.path.dirname(os.path.abspath(file)) != cache]
        self.notes = list(self._notes(tree, others))
        return [Path(file) for file in images]

    def _images(self, tree: "Tree") -> list[str]:
        return [file for file in sorted(tree.files) if file.lower().endswith(self.suffixes)]

    def _of(self, file: str, split: str) -> bool:
        """Whether an image is of a split, by the folder below the root that it lies in."""
        name = self._name(Path(file))
        return "/" in name and in_split(name.partition("/")[0], split)

    def _of_split(self, images: list[str], split: str) -> list[str]:
        """The images of a split.

        Raises:
            InputError: there are none.
        """
        chosen = [file for file in images if self._of(file, split)]
        if not chosen:
            there = sorted({self._name(Path(file)).partition("/")[0] for file in images})
            raise InputError(
                f"data.splits=named: no images of split={split} in {str(self.root.absolute())!r}, "
                f"which has {listed([repr(shown(name, 40)) for name in there], MAX_NAMED)}.\n"
                "The folders of the splits are named train, val and test; or set data.splits=hash."
            )
        return chosen

    def has_split(self, split: str) -> bool:
        return any(self._of(file, split) for file in self._images(self._tree()))

    def _inner(self, name: str) -> str:
        """The name of an image within its split."""
        return name.partition("/")[2] if self.by_name and split_of(name) else name

    def _tree(self) -> "Tree":
        """The files below the root.

        Raises:
            InputError: the folder is not named, does not exist, is a run folder, or cannot be read.
        """
        if not self._has_root:
            raise InputError(
                "data.root: must be the folder of the images, data.root=/path/to/folder"
            )
        if not listing.exists(self.root) or not self.root.is_dir():
            raise InputError(f"data.root: there is no folder {str(self.root.absolute())!r}")
        if run_dir.holds_run({entry.name for entry in listing.entries(self.root)}):
            raise InputError(
                f"data.root: {str(self.root.absolute())!r} is the folder of a run (config.yaml), "
                "whose previews would be among the images.\n"
                "Move the images to a separate folder, or choose a subfolder, such as samples."
            )
        return walk(str(self.root), self.suffixes)

    def _notes(self, tree: "Tree", others: Sequence[str]) -> Iterator[str]:
        """Files that were left out, one line for each reason."""
        if tree.again:
            yield f"read once, although linked again: {self._named(tree.again, 'folder')}"
        if tree.runs:
            yield f"left out, because they hold runs: {self._named(tree.runs, 'folder')}"
        if tree.broken:
            yield f"left out, because they are broken: {self._named(tree.broken, 'link')}"
        if others:
            yield f"left out by their endings: {_endings(others)}"

    def _named(self, paths: Sequence[str], kind: str) -> str:
        """`2 folders (cats/back, dogs/back)`."""
        names = [shown(os.path.relpath(path, self.root), 100) for path in sorted(paths)]
        return f"{len(paths)} {kind}{'s' * (len(paths) > 1)} ({listed(names, MAX_NAMED)})"

    def images(self, split: str) -> ImageFiles:
        paths = [self.root / name for name, *_ in self.sources]
        index = {name: i for i, name in enumerate(self.class_names or [])}
        inner = [self._inner(name).partition("/")[0] for name, *_ in self.sources]
        return ImageFiles(paths, [index.get(name, 0) for name in inner])


@dataclass
class Tree:
    """The paths that `walk` found.

    Args:
        files: everything but folders.
        again: folders already read by another path.
        runs: run folders.
        broken: broken links without the name of an image.
    """

    files: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def walk(root: str, suffixes: tuple[str, ...] = SUFFIXES) -> Tree:
    """All files below a folder, except hidden ones and those of runs. Links are followed; a folder
    is read once, by its real path if that is below the root, so that cycles end.

    Raises:
        Unreachable: a folder cannot be listed.
    """
    tree = Tree()
    visited: set[tuple[int, int] | str] = set()
    todo = [(False, root)]  # a heap: real folders first, then links, each by their paths
    while todo:
        _, folder = heapq.heappop(todo)
        stat = listing.stat(folder)
        identity: tuple[int, int] | str
        if stat is not None and stat.st_ino:
            identity = (stat.st_dev, stat.st_ino)
        else:  # not every file system numbers its folders
            identity = os.path.realpath(folder)
        if identity in visited:
            tree.again.append(folder)
            continue
        visited.add(identity)
        entries = listing.entries(folder, needed=True)
        if folder != root and run_dir.holds_run({entry.name for entry in entries}):
            tree.runs.append(folder)
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if listing.is_folder(entry):
                heapq.heappush(todo, (entry.is_symlink(), entry.path))
            elif entry.name.lower().endswith(suffixes) or listing.exists(entry.path):
                tree.files.append(entry.path)
            else:
                tree.broken.append(entry.path)
    return tree


def _endings(files: Sequence[str]) -> str:
    """`3 '.gif', 1 '.txt'`: the most frequent endings."""
    counts = Counter(Path(file).suffix.lower() or "without suffix" for file in files)
    return listed([f"{n} {shown(ending, 20)!r}" for ending, n in counts.most_common()], MAX_NAMED)
