"""The preconditioned network of EDM: input, output and target have variance 1."""

import math

import torch
from torch import Tensor, nn

from ddpm.errors import InputError
from ddpm.limits.parts import check_limits
from ddpm.objectives.base import Objective

LARGEST_NOISE = 1e4  # sigma / alpha, for c_noise of pure noise


class EDM(nn.Module, Objective):
    """D(x; s) = c_skip x + c_out F(c_in x; c_noise): Eq. 7 of Karras et al. 2022
    (arXiv:2206.00364), for x = x_t / alpha of noise level s = sigma / alpha.

    With d = alpha^2 sigma_data^2 + sigma^2, the variance of x_t, Table 1 of the paper reads

        F(x_t / sqrt(d); ln(s) / 4)
        x_0 = alpha sigma_data^2 / d x_t + sigma sigma_data / sqrt(d) F

    which holds for pure noise (alpha = 0), too. With sigma_data = 1, F is -v. Equal weights of the
    errors of F are the paper's loss (`weighting=edm`).

    Args:
        sigma_data: standard deviation of x_0; "data": measured at the start of training, and stored
            in the checkpoint.
        learned_variance, vlb_weight, loss_type: see `Objective`.
    """

    measured: Tensor

    def __init__(
        self,
        *,
        sigma_data: float | str = 0.5,
        learned_variance: bool = False,
        vlb_weight: float = 0.001,
        loss_type: str = "mse",
    ) -> None:
        nn.Module.__init__(self)
        Objective.__init__(
            self, learned_variance=learned_variance, vlb_weight=vlb_weight, loss_type=loss_type
        )
        check_limits("objective", sigma_data=sigma_data)
        self.measures = sigma_data == "data"
        self.sigma_data = math.nan if self.measures else float(sigma_data)
        if self.measures:
            self.register_buffer("measured", torch.tensor(math.nan))

    def measure(self, x_0: Tensor) -> None:
        """Set sigma_data to the standard deviation of all values of x_0 (N, C, H, W)."""
        self.measured.fill_(x_0.double().std().clamp(min=1e-3).item())
        self.after_loading()

    def describe(self) -> str:
        return f"objective.sigma_data={self.sigma_data:.4g}"

    def after_loading(self) -> None:
        if self.measures:
            self.sigma_data = self.measured.item()

    def inputs(self, x_t: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """c_in x and c_noise."""
        noise = (sigma / alpha).clamp(max=LARGEST_NOISE).flatten()
        return x_t / self._std(alpha, sigma), noise.log() / 4

    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        std = self._std(alpha, sigma) * self.sigma_data
        return (sigma * x_0 - alpha * self.sigma_data**2 * eps) / std

    def predict_x_0(self, x_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        std = self._std(alpha, sigma)
        kept = alpha * self.sigma_data**2 / std**2
        return kept * x_t + sigma * self.sigma_data / std * output

    def error_scale(self, snr: Tensor) -> Tensor:
        return snr + 1 / self.sigma_data**2  # 1 / c_out^2

    def _std(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Standard deviation of x_t."""
        if math.isnan(self.sigma_data):
            raise InputError("objective.sigma_data=data: is measured by training; it is not yet.")
        return (alpha**2 * self.sigma_data**2 + sigma**2).sqrt()
