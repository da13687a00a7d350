"""The nearest pictures in pixels, over all mirrored and shifted versions: exact, in blocks.

The distance is the least root mean square difference, in grey levels, of the inner parts of two
pictures, which stay clear of the edges by the largest shift: what a shift brings in from outside
is not compared, so a shifted copy has distance 0.

Few pairs are compared in full. With an orthonormal basis of p directions and what is left of a
picture's norm besides them, each picture has p + 1 coordinates, in which any two pictures are at
most as far apart as in pixels. Pairs that are further apart there than the two nearest pictures
found so far cannot be nearer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.metrics import sets

DIRECTIONS = 96  # of the basis
FITTED = 1024  # pictures that the basis is fitted to
FIRST = 16  # pictures that are compared in full at first
# Of squared distances in float32, times the largest squared norm: at most about 4 (p + 1) 2^-24.
ROUNDING = 5e-5
ROWS = 2048  # pictures of a block
NUMBERS = 1 << 24  # of a block of distances: 64 MB in float32


@dataclass(frozen=True)
class Nearest:
    """For each picture the distance to the nearest and to the second nearest, (n,) float64, and
    the row of the nearest, (n,) int64."""

    first: Tensor
    second: Tensor
    row: Tensor


@dataclass(frozen=True)
class Index:
    """Pictures to be searched.

    Args:
        images: uint8 (N, C, H, W).
        mean, basis: (D,) and (D, p) float64, of the inner parts.
        coordinates: (N, p + 1) float32.
        shifts: the largest shift, in pixels.
        flips: whether mirrored versions count.
    """

    images: Tensor
    mean: Tensor
    basis: Tensor
    coordinates: Tensor
    shifts: int
    flips: bool

    @classmethod
    def of(cls, images: Tensor, shifts: int, flips: bool) -> "Index":
        spread = torch.linspace(0, len(images) - 1, min(FITTED, len(images))).round().long()
        some = inner(images[spread], shifts).double()
        mean = some.mean(0)
        some -= mean
        _, vectors = torch.linalg.eigh(some @ some.T)  # ascending
        directions = some.T @ vectors[:, -DIRECTIONS:]
        basis = torch.linalg.qr(directions)[0]
        parts = [coordinates(inner(part, shifts), mean, basis) for part in images.split(ROWS)]
        return cls(images, mean, basis, torch.cat(parts), shifts, flips)

    def search(self, queries: Tensor, skip: Tensor | None = None) -> Nearest:
        """The nearest of the pictures.

        Args:
            queries: uint8 (n, C, H, W).
            skip: (n,) rows that are not compared: the queries themselves.
        """
        found = []
        size = max(1, NUMBERS // (len(self.images) + ROWS * _count(self.shifts, self.flips)))
        for start in range(0, len(queries), size):
            part = slice(start, start + size)
            found.append(self._search(queries[part], None if skip is None else skip[part]))
        return Nearest(
            torch.cat([f.first for f in found]),
            torch.cat([f.second for f in found]),
            torch.cat([f.row for f in found]),
        )

    def _search(self, queries: Tensor, skip: Tensor | None) -> Nearest:
        views = versions(queries, self.shifts, self.flips)  # (n, v, D)
        bounds = self._bounds(views)
        if skip is not None:
            bounds[torch.arange(len(bounds)), skip] = torch.inf
        likely = bounds.topk(min(FIRST, bounds.shape[1]), 1, largest=False).indices
        results = [
            self._of_one(view.double(), bound, rows)
            for view, bound, rows in zip(views, bounds, likely, strict=True)
        ]
        first, second, row = zip(*results, strict=True)
        distances = torch.tensor([first, second], dtype=torch.float64)
        return Nearest(distances[0], distances[1], torch.tensor(row))

    def _of_one(self, view: Tensor, bound: Tensor, likely: Tensor) -> tuple[float, float, int]:
        squares = self._squares(view, likely)
        second = squares.topk(min(2, len(squares)), largest=False).values[-1]
        rows = torch.nonzero(bound <= second)[:, 0]
        found = [self._squares(view, part) for part in rows.split(ROWS)]
        values, places = torch.cat(found).topk(min(2, len(rows)), largest=False)
        roots = (values / view.shape[1]).sqrt().tolist()
        return roots[0], roots[-1] if len(roots) > 1 else float("inf"), int(rows[places[0]])

    def _squares(self, view: Tensor, rows: Tensor) -> Tensor:
        """Squared distances of the versions (v, D) of one picture to some of the pictures, the
        least of each: (m,) float64. Sums of products of grey levels are integers, so exact."""
        others = inner(self.images[rows], self.shifts).double()
        squares = (others**2).sum(1) - 2 * view @ others.T + (view**2).sum(1, keepdim=True)
        return squares.amin(0)

    def _bounds(self, views: Tensor) -> Tensor:
        """Lower bounds of the squared distances: (n, v, D) -> (n, N) float32."""
        n, v, _ = views.shape
        own = coordinates(views.flatten(0, 1), self.mean, self.basis)
        squares = (own**2).sum(1)
        bounds = torch.empty(n, len(self.coordinates))
        slack = 0.0
        for start in range(0, len(self.coordinates), ROWS):
            other = self.coordinates[start : start + ROWS]
            other_squares = (other**2).sum(1)
            slack = max(slack, float(other_squares.max()))
            distances = torch.addmm(squares[:, None], own, other.T, alpha=-2)
            least = distances.view(n, v, -1).amin(1)
            bounds[:, start : start + ROWS] = least + other_squares
        return bounds.sub_(ROUNDING * max(slack, float(squares.max())))


def inner(images: Tensor, shifts: int, down: int = 0, right: int = 0) -> Tensor:
    """(n, C, H, W) -> (n, D): without `shifts` pixels at each edge, moved by (down, right)."""
    height, width = images.shape[-2:]
    rows = slice(shifts + down, height - shifts + down)
    columns = slice(shifts + right, width - shifts + right)
    return images[..., rows, columns].flatten(1)


def versions(images: Tensor, shifts: int, flips: bool) -> Tensor:
    """All shifted, and mirrored, inner parts: (n, C, H, W) -> (n, v, D), uint8."""
    moves = range(-shifts, shifts + 1)
    sides = [images, images.flip(-1)] if flips else [images]
    parts = [
        inner(side, shifts, down, right) for side in sides for down in moves for right in moves
    ]
    return torch.stack(parts, 1)


def _count(shifts: int, flips: bool) -> int:
    return (2 * shifts + 1) ** 2 * (1 + flips)


def coordinates(parts: Tensor, mean: Tensor, basis: Tensor) -> Tensor:
    """Coordinates in the basis, and the norm of the rest: (n, D) -> (n, p + 1), float32."""
    found = torch.empty(len(parts), basis.shape[1] + 1)
    for rows in sets.blocks(*parts.shape):
        centred = parts[rows].double() - mean
        along = centred @ basis
        rest = (centred**2).sum(1) - (along**2).sum(1)
        found[rows] = torch.cat([along, rest.clamp(min=0).sqrt()[:, None]], 1).float()
    return found
