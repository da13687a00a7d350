"""The network predicts the image itself."""

from torch import Tensor

from ddpm.objectives.base import Objective


class X0(Objective):
    """x_0, the alternative of section 3.2 of Ho et al. 2020 (arXiv:2006.11239)."""

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x_0

    def predict_x_0(self, x_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output

    def error_scale(self, snr: Tensor) -> Tensor:
        return snr.new_ones(()).expand_as(snr)
