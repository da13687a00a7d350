"""The network predicts the velocity, which is well posed from pure noise to a clean image."""

from torch import Tensor

from ddpm.objectives.base import Objective


class V(Objective):
    """v = alpha eps - sigma x_0, appendix D of Salimans & Ho 2022 (arXiv:2202.00512)."""

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * eps - sigma * x_0

    def predict_x_0(self, x_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * x_t - sigma * output

    def error_scale(self, snr: Tensor) -> Tensor:
        return snr + 1
