"""Any tree of PNG, JPEG, WebP or BMP files."""

import os
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

from ddpm.data.base import ImageData, ImageFiles
from ddpm.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Folder(ImageData):
    """The images below `root`, in the order of their paths; hidden files and folders are left out.

    The folders directly below `root` are the classes if every image lies in one of them.
    """

    name = "folder"

    def __init__(self, *, root: str | Path | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        if not root:
            raise InputError("data.root: say where the images are, data.root=/path/to/a/folder")
        self.root = Path(root).expanduser()

    @cached_property
    def class_names(self) -> list[str] | None:
        folders = {name.rpartition("/")[0].partition("/")[0] for name, *_ in self.sources}
        return sorted(folders) if "" not in folders else None

    def files(self, split: str) -> list[Path]:
        if not self.root.is_dir():
            raise InputError(f"data.root: there is no folder {str(self.root.absolute())!r}")
        files: list[str] = []
        for folder, subfolders, names in os.walk(self.root, followlinks=True):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            files += [os.path.join(folder, name) for name in names if not name.startswith(".")]
        images = [Path(file) for file in sorted(files) if file.lower().endswith(SUFFIXES)]
        if not images:
            counts = Counter(Path(file).suffix or "without suffix" for file in files).most_common(5)
            found = ", ".join(f"{count} {suffix!r}" for suffix, count in counts) or "no files"
            raise InputError(
                f"data.root: no images in {str(self.root.absolute())!r} (found: {found}).\n"
                f"Read are {', '.join(SUFFIXES)}, also in folders within."
            )
        return images

    def images(self, split: str) -> ImageFiles:
        paths = [self.root / name for name, *_ in self.sources]
        index = {name: i for i, name in enumerate(self.class_names or [])}
        return ImageFiles(
            paths, [index.get(name.partition("/")[0], 0) for name, *_ in self.sources]
        )
