"""Steps with large losses more often."""

import torch
from torch import Tensor

from ddpm.limits.parts import check_limits
from ddpm.timesteps.base import Timesteps, cumulate


class Importance(Timesteps):
    """p_t ~ sqrt(mean of L_t^2) over the last losses at t, and losses multiplied by 1 / (T p_t):
    importance sampling, section 3.3 of Nichol & Dhariwal 2021 (arXiv:2102.09672).

    The expected loss is that of uniform t, its variance lower. Until every t has `history` losses,
    all are equally likely. The losses of all processes are learned from, in the order of the batch,
    so that runs on any number of devices draw the same.

    Args:
        history: losses that are kept of each t; 10 in the paper.
        uniform_share: probability that t is drawn uniformly instead; above 0, so that no t is
            forgotten. 0.001 in the authors' code.
    """

    learns = True
    losses: Tensor  # (T + 1, history): row T takes what is not kept
    counts: Tensor  # (T,)

    def __init__(self, *, history: int, uniform_share: float, stratified: bool = False) -> None:
        super().__init__(stratified=stratified)
        check_limits("timesteps", history=history, uniform_share=uniform_share)
        self.history, self.uniform_share = history, uniform_share

    def prepare(self, snr: Tensor) -> None:
        if not hasattr(self, "counts"):
            T, device = len(snr), snr.device
            self.register_buffer("losses", torch.zeros(T + 1, self.history, device=device))
            self.register_buffer("counts", torch.zeros(T, dtype=torch.int64, device=device))

    def probabilities(self, snr: Tensor | None = None) -> Tensor:
        """The current probability of each t, (T,), float64 where the device has it."""
        dtype = torch.float32 if self.losses.device.type == "mps" else torch.float64
        uniform = torch.full((len(self.counts),), 1 / len(self.counts), dtype=dtype)
        uniform = uniform.to(self.losses.device)
        root = self.losses[:-1].to(dtype).square().mean(1).sqrt()
        total = root.sum()
        warm = (self.counts >= self.history).all() & (total > 0)
        learned = root / torch.where(warm, total, 1)
        mixed = (1 - self.uniform_share) * learned + self.uniform_share * uniform
        return torch.where(warm, mixed, uniform)

    def forward(
        self, size: int, T: int, device: torch.device, generator: torch.Generator | None = None
    ) -> Tensor:
        cumulative = cumulate(self.probabilities())
        u = self.uniforms(size, device, generator).to(cumulative.dtype)
        return torch.searchsorted(cumulative, u, right=True).clamp(max=T - 1)

    def loss_weights(self, t: Tensor) -> Tensor:
        p = self.probabilities()
        return (1 / (len(p) * p[t])).float()

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor, skip: Tensor) -> None:
        """The losses enter in the order of the batch; of more than `history` at one t, the last."""
        equal = t[:, None] == t[None, :]
        before = equal.tril(-1).sum(1)  # earlier entries of the batch with the same t
        kept = (equal.sum(1) - before <= self.history) & ~skip
        slot = (self.counts[t] + before) % self.history
        row = torch.where(kept, t, len(self.counts))
        self.losses[row, slot] = losses.float()
        self.losses[-1] = 0  # of several losses in one place, a GPU keeps any
        self.counts.scatter_add_(0, t, (~skip).long().expand_as(t))
