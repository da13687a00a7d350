# %% [markdown]
# # 7 Noise, image or velocity: one network in four forms
#
# A network may predict the noise, the image, or a mixture of both, and newer papers speak of flows
# instead of diffusion. On points in the plane one can see what differs and what does not. A point
# is an image of one pixel with two channels:

# %%
import torch
from common import plt
from sklearn.datasets import make_moons
from torch import nn

from ddpm.diffusion import GaussianDiffusion
from ddpm.objectives.eps import Eps
from ddpm.objectives.v import V
from ddpm.objectives.velocity import Velocity
from ddpm.objectives.x_0 import X0
from ddpm.pipeline import Pipeline
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.schedules.cosine import cosine
from ddpm.schedules.linear import linear
from ddpm.schedules.rectified import rectified

points = torch.from_numpy(make_moons(200, noise=0.05, random_state=0)[0]).float()
points = (points - points.mean(0)) / points.std(0) * 0.55
points = points[:, :, None, None]  # (200, 2, 1, 1), values in [-1, 1]


def plane(ax, title, way, dots=None):
    """The data in grey, paths (steps + 1, B, 2), and where they end; a dot at so many steps."""
    ax.plot(*points.flatten(1).T, ".", ms=2, color="0.6")
    ax.plot(way[..., 0], way[..., 1], lw=0.7)
    if dots:
        ax.plot(*way[::dots].flatten(0, 1).T, ".", ms=2, color="0.3")
    ax.plot(*way[-1].T, "k.", ms=4)
    ax.set(title=title, aspect="equal", xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))


# %% [markdown]
# ## The best possible network
#
# For so few points nothing needs to be trained. The best guess of $x_0$ is the mean of all points,
# each weighted by how probable it is that it became $x_t$ (Eq. 4):
#
# $$\hat x_0 = \sum_i w_i\, x_0^{(i)}, \qquad
# w_i \propto \exp\left(-\frac{\lVert x_t - \alpha_t x_0^{(i)} \rVert^2}{2 \sigma_t^2}\right)$$
#
# The noise follows from it, and whatever else one may ask for is a mixture of the two, which
# `target` of an objective computes: $\epsilon$, $x_0$, $v = \alpha \epsilon - \sigma x_0$, or the
# velocity $\epsilon - x_0$ of flow matching.


# %%
class Best(nn.Module):
    def __init__(self, diffusion):
        super().__init__()
        self.diffusion = diffusion

    def forward(self, x_t, t):
        alpha, sigma = self.diffusion.alpha_sigma_like(x_t, t)  # (B, 1, 1, 1)
        distances = (x_t[:, None] - alpha[:, None] * points).square().sum((2, 3, 4))  # (B, 200)
        w = (-distances / (2 * sigma.flatten()[:, None] ** 2)).softmax(1)
        x_0 = torch.einsum("bn,nchw->bchw", w, points)
        eps = (x_t - alpha * x_0) / sigma
        return self.diffusion.objective.target(x_0, eps, alpha, sigma)


def paths(betas, objective, sampler, count=30):
    """The way of some points from noise to data, (steps + 1, count, 2)."""
    diffusion = GaussianDiffusion(betas=betas, objective=objective)
    pipeline = Pipeline(Best(diffusion), diffusion, sampler, (2, 1, 1))
    return torch.stack([*pipeline.trajectory(range(count))]).flatten(2)


objectives = {"eps": Eps(), "x_0": X0(), "v": V(), "velocity": Velocity()}
ends = {k: paths(linear(), o, DDIM(steps=100, eta=0))[-1] for k, o in objectives.items()}
for name, end in ends.items():
    print(f"{name:9} differs from eps by {(end - ends['eps']).abs().max():.1e}")

# %% [markdown]
# So a perfect network draws the same points, whatever it predicts. Real networks err, and there the
# form matters: it decides what an error of the output becomes in the image
# (`Objective.error_scale`). Where nearly all is noise, a small error in the noise is a large one in
# the image. Where there is hardly any, it does not matter, while a network that predicts the image
# must paint every detail of it anew. The two mixtures have neither weakness.

# %%
process = GaussianDiffusion(betas=cosine())
alpha, sigma = torch.tensor([process.alpha_sigma(t) for t in range(0, 1000, 10)]).T
snr = (alpha / sigma) ** 2
for name, objective in objectives.items():
    plt.plot(range(0, 1000, 10), objective.error_scale(snr).rsqrt().expand(100), label=name)
plt.gca().set(yscale="log", ylim=(3e-2, 30), xlabel="t", ylabel="error of x_0 per error of output")
plt.legend()

# %% [markdown]
# ## Diffusion and flow matching: the same paths
#
# Flow matching joins each image with its noise by a straight line, $(1 - u)\, x_0 + u\, \epsilon$
# (left). Divided by $\sqrt{(1 - u)^2 + u^2}$ that is one more schedule:
# `ddpm/schedules/rectified.py:rectified`. Sampling follows the *mean* of all lines through a point.
# So its paths start towards the middle of the data, and bend when it becomes clear which points are
# meant: with the linear schedule of Ho et al. (middle), and with that of flow matching in its own
# coordinates $x_t / (\alpha_t + \sigma_t)$ (right). The dots are ten steps of the same length in t.

# %%
sampler = DDIM(steps=200, eta=0)
flow = GaussianDiffusion(betas=rectified(), objective=Velocity())
steps = [t for t, _ in sampler.timesteps(flow)] + [-1]
total = torch.tensor([sum(flow.alpha_sigma(t)) for t in steps])[:, None, None]
by_linear = paths(linear(), Velocity(), sampler)
by_flow = paths(rectified(), Velocity(), sampler)
pairs = torch.stack([by_linear[0], points.flatten(1)[torch.arange(30) % len(points)]])
fig, axes = plt.subplots(1, 3, figsize=(8, 2.9), sharey=True)
plane(axes[0], "straight lines", pairs)
plane(axes[1], "linear", by_linear, dots=20)
plane(axes[2], "flow matching", by_flow / total, dots=20)
ends = [torch.cdist(way[-1], points.flatten(1)).argmin(1) for way in (by_linear, by_flow)]
print(f"of the same noise, {(ends[0] == ends[1]).float().mean():.0%} end at the same point")

# %% [markdown]
# The same noise nearly always leads to the same point. As curves the two are one and the same,
# because both follow the ratio of signal to noise. What flow matching changes is where the steps
# lie and, in training, how often each level of noise is drawn and how much it counts. `schedule`,
# `timesteps`, `objective` and `weighting` are therefore groups of their own.
#
# ## With and without noise
#
# DDIM goes the same way each time; the paper's Algorithm 2 adds noise at each step, and its paths
# wander. Both end among the data.

# %%
fig, axes = plt.subplots(1, 2, figsize=(6, 2.9), sharey=True)
ddim = paths(linear(), Eps(), DDIM(steps=200, eta=0))
ddpm = paths(linear(), Eps(), DDPM(steps=200, variance="auto"))
far = ddim[0].norm(dim=1).topk(4).indices  # the four that start farthest out
plane(axes[0], "DDIM", ddim[:, far])
plane(axes[1], "DDPM", ddpm[:, far])

# %% [markdown]
# ## The best network copies
#
# Where did the samples end? On the training points themselves. A network that solved its task
# perfectly would only copy; that it makes new images is owed to what it cannot learn exactly. (How
# near samples are to training images is what `metric=copies` measures.)

# %%
samples = paths(linear(), Eps(), DDIM(steps=200, eta=0), count=200)[-1]
nearest = torch.cdist(samples, points.flatten(1)).min(1).values
typical = torch.cdist(points.flatten(1), points.flatten(1)).fill_diagonal_(9).min(1).values
print(f"distance to the nearest training point: {nearest.median():.4f}")
print(f"between neighbouring training points:   {typical.median():.4f}")

# %% [markdown]
# **Change and see.** Draw the paths with `DDIM(steps=5, eta=0)`: with which schedule do they end
# nearer to where many steps lead, and for which of them does `spacing="log_snr"` help? Replace the
# moons by two points: where do the paths bend? And `python run.py objective=velocity
# schedule=rectified weighting=velocity` trains digits by flow matching.
