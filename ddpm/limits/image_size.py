"""data.image_size: one side of a square, or [height, width]."""

from collections.abc import Sequence

Size = int | Sequence[int]


def sides(image_size: Size) -> tuple[int, int]:
    """Height and width."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


def text(image_size: Size) -> str:
    """`64`, or `48x64` (height, width): how files are named."""
    height, width = sides(image_size)
    return str(height) if height == width else f"{height}x{width}"
