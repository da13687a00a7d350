# %% [markdown]
# # 6 Fewer steps
#
# Page 4 took a hundred calls of the network for an image, the paper a thousand. The same network
# can do with fifteen: the steps back need not be random, and a curve can be followed with fewer,
# better steps.

# %%
import matplotlib.pyplot as plt
from common import process, show, trained

from ddpm.pipeline import Pipeline
from ddpm.samplers.base import half_log_snr, timesteps
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.samplers.dpm_solver import DPMSolver
from ddpm.samplers.heun import Heun

diffusion, model = process(), trained()


def draw(sampler, count=10):
    pipeline = Pipeline(model, diffusion, sampler, (1, 16, 16), num_classes=10)
    return pipeline.sample(count, seed=0, labels=list(range(10))).float() / 127.5 - 1


# %% [markdown]
# ## Without noise: DDIM
#
# $x_s = \alpha_s \hat x_0 + \sigma_s \hat\epsilon$ (Song et al. 2021, Eq. 12): mix the guess of
# the image and the guess of the noise again, for the lower level s. `ddpm/samplers/ddim.py:DDIM`
# with `eta=0`; `eta=1` adds the noise of Algorithm 2. The same start now always leads to the same
# image, so more steps only refine it:

# %%
counts = (1, 2, 5, 10, 50)
rows = [draw(DDIM(steps=n, eta=0)) for n in counts]
show(rows, [str(i) for i in range(10)], [f"{n} steps" for n in counts])

# %% [markdown]
# ## Second order: DPM-Solver++ and Heun
#
# DDIM goes along the tangent. Knowing the last guess as well, or asking once more at the end of
# the step, tells how the path bends: `ddpm/samplers/dpm_solver.py:DPMSolver` (Lu et al. 2022) and
# `ddpm/samplers/heun.py:Heun` (Karras et al. 2022). How far is each from the end of the path,
# which DDIM with 1000 steps reaches? Heun calls the network twice a step.

# %%
exact = draw(DDIM(steps=None, eta=0))
samplers = {
    "DDIM": lambda n: DDIM(steps=n, eta=0, spacing="log_snr"),
    "DPM-Solver++": lambda n: DPMSolver(steps=n, order=2, stochastic=False, spacing="log_snr"),
    "Heun": lambda n: Heun(steps=(n + 1) // 2, spacing="log_snr"),
}
for name, sampler in samplers.items():
    calls = [5, 9, 15, 25, 49]
    errors = [(draw(sampler(n)) - exact).square().mean().sqrt() for n in calls]
    plt.plot(calls, errors, "o-", label=name)
plt.gca().set(xlabel="calls of the network", ylabel="distance to the exact path", yscale="log")
plt.legend()

# %% [markdown]
# ## Where the steps are
#
# `ddpm/samplers/base.py:timesteps` distributes the steps over 0 .. T-1. Solvers of second order
# want them even in the logarithm of the signal-to-noise ratio.

# %%
for place, spacing in enumerate(("uniform", "quadratic", "trailing", "log_snr")):
    ts = timesteps(diffusion, 15, spacing)
    plt.plot([2 * half_log_snr(*diffusion.alpha_sigma(t)) for t in ts], [place] * 15, "|", ms=14)
plt.yticks(range(4), ("uniform", "quadratic", "trailing", "log_snr"))
plt.gca().set(xlabel="log SNR of the steps")

# %% [markdown]
# ## Noise forgives
#
# A network that was trained briefly is a little wrong at every step. Fresh noise covers old
# errors, a deterministic path keeps them.

# %%
show(
    [draw(DDPM(steps=15, variance="auto")), rows[3], draw(samplers["DPM-Solver++"](15))],
    [str(i) for i in range(10)],
    ["DDPM, 15", "DDIM, 10", "DPM++, 15"],
)

# %% [markdown]
# **Change and see.** `DPMSolver(order=1)` is DDIM: draw both and compare. `stochastic=True` adds
# fresh noise to the solver. And `python run.py job=sample checkpoint=<run folder>
# sampler=dpm_solver sampler.steps=15` does this with a network of your own.
