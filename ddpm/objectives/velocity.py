"""The network predicts the velocity of the straight path from the image to the noise."""

from torch import Tensor

from ddpm.objectives.base import Objective


class Velocity(Objective):
    """eps - x_0: flow matching (Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023,
    arXiv:2209.03003), for every schedule. The network sees x_t of variance 1, where papers on flows
    give it x_t / (alpha + sigma): their figures compare up to this factor."""

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return eps - x_0

    def predict_x_0(self, x_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * output) / (alpha + sigma)

    def error_scale(self, snr: Tensor) -> Tensor:
        return (snr.sqrt() + 1) ** 2
