"""Every t is equally likely."""

import torch
from torch import Tensor

from ddpm.timesteps.base import Timesteps


class Uniform(Timesteps):
    """Algorithm 1, line 3, of Ho et al. 2020 (arXiv:2006.11239); stratified as in Kingma et al.
    2021 (arXiv:2107.00630), appendix I.1."""

    uniform = True

    def probabilities(self, snr: Tensor) -> Tensor:
        return torch.ones_like(snr)

    def forward(
        self, size: int, T: int, device: torch.device, generator: torch.Generator | None = None
    ) -> Tensor:
        if self.stratified:
            return super().forward(size, T, device, generator)
        return torch.randint(T, (size,), generator=generator, device=device)
