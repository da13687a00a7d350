"""Pictures themselves as features: for tests, and where no network fits."""

from torch import Tensor

from ddpm.features.base import Features


class Pixels(Features):
    """All grey levels of a picture, from 0 to 1, row by row and channel by channel."""

    name = "pixels"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1).float().cpu() / 255

    def passport(self) -> dict[str, object]:
        return {"name": self.name, "dtype": "float32"}
