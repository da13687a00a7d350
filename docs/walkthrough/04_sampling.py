# %% [markdown]
# # 4 Sampling: from noise to image
#
# The network of page 3 guesses x_0, the formula of page 2 takes a step back. Repeat, from pure
# noise.

# %%
import torch
from common import process, show, trained

from ddpm.denoising import Denoiser, predict
from ddpm.figures.reverse import record
from ddpm.pipeline import Pipeline
from ddpm.samplers.ddpm import DDPM

diffusion, model = process(), trained()

# %% [markdown]
# ## The guess: Eq. 15
#
# $\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\epsilon_\theta) / \sqrt{\bar\alpha_t}$
#
# `ddpm/objectives/eps.py:predict_x_0` is Eq. 15 for networks that predict the noise. Whatever
# yours predicts, `ddpm/denoising.py:predict` returns both: x_0, clipped to the range of images,
# and the eps that belongs to it by Eq. 4.

# %%
x_T = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
t = torch.full((8,), diffusion.T - 1)
label = torch.arange(8)
guess = predict(diffusion, model(x_T, t, label), x_T, t)
show([x_T, guess.x_0], [str(i) for i in range(8)], ["x_T", "x_0_hat"])

# %% [markdown]
# From noise alone, the best guess is the mean of all images of that label: blurred. One step is
# not enough.
#
# ## Algorithm 2
#
# $x_{t-1} = \mu_\theta(x_t, t) + \sigma_t z$: the posterior's mean for the guess (Eq. 11, through
# Eq. 7), and fresh noise. `ddpm/samplers/ddpm.py:p_sample` is one step;
# `ddpm/samplers/ddpm.py:DDPM` goes through all T, or through some of them.

# %%
denoiser = Denoiser(model, diffusion, label=label)
sampler = DDPM(steps=100, variance="auto")
with torch.no_grad():
    *_, x_0 = sampler(denoiser, x_T)
show([x_0], [str(i) for i in range(8)])

# %% [markdown]
# ## On the way
#
# `Pipeline` puts network, process and sampler together. Here is what one image was at nine steps:
# x_t, the guess of x_0 and of the noise. The shape is decided early, details late.

# %%
pipeline = Pipeline(model, diffusion, sampler, (1, 16, 16), num_classes=10)
calls, x_0 = record(pipeline, seeds=[3], labels=[5])
chosen = calls[::12]
show(
    [
        torch.cat([x_t for _, x_t, _ in chosen]),
        torch.cat([p.x_0 for _, _, p in chosen]),
        torch.cat([p.eps / 3 for _, _, p in chosen]),
    ],
    [f"t = {t}" for t, _, _ in chosen],
    ["x_t", "x_0_hat", "eps_hat"],
)

# %% [markdown]
# ## New digits

# %%
digits = pipeline.sample(20, seed=0, labels=list(range(10))).float() / 127.5 - 1
show([digits[:10], digits[10:]], [str(i) for i in range(10)])

# %% [markdown]
# **Change and see.** Leave out the noise: `DDPM` with `randn=torch.zeros_like` in the call of the
# sampler. The images turn blurred, because the mean of a step is a mean over images. Use
# `steps=5`, then all T with `steps=None`.
