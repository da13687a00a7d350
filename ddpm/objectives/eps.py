"""The network predicts the noise: the objective of the DDPM paper."""

from torch import Tensor

from ddpm.objectives.base import Objective


class Eps(Objective):
    """eps, Eq. 14 of Ho et al. 2020 (arXiv:2006.11239)."""

    needs_signal = True

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return eps

    def predict_x_0(self, x_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * output) / alpha  # Eq. 15

    def error_scale(self, snr: Tensor) -> Tensor:
        return snr
