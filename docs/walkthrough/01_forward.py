# %% [markdown]
# # 1 From image to noise
#
# Diffusion models learn to undo something simple: adding noise, a little at a time. This page adds
# it. Equations are those of [Ho et al. 2020](https://arxiv.org/abs/2006.11239); every function is
# imported from `ddpm/`, so what you see is what a run computes. In the code t runs over 0 .. T-1,
# where t = 0 is one step of noise (the paper's t = 1) and s = -1 stands for x_0.

# %%
import matplotlib.pyplot as plt
import torch
from common import digits, show

from ddpm.diffusion import GaussianDiffusion
from ddpm.editing.repaint import forward
from ddpm.schedules.cosine import cosine
from ddpm.schedules.linear import linear

images, labels = digits()
show([images[:10]])

# %% [markdown]
# ## One step: Eq. 2
#
# $q(x_t | x_{t-1}) = \mathcal{N}(\sqrt{1-\beta_t}\, x_{t-1},\ \beta_t I)$
#
# A step shrinks the image a little and adds a little noise, so that the variance stays near 1. The
# betas are a choice, the **schedule**: here the one of the paper, from 0.0001 to 0.02 in T = 1000
# steps. `ddpm/editing/repaint.py:forward` is Eq. 2, for one step or several.

# %%
process = GaussianDiffusion(betas=linear(T=1000, beta_start=1e-4, beta_end=0.02))
x_t, strip = images[:1], [images[0]]
for t in range(process.T):
    x_t = forward(process, x_t, s=t - 1, t=t, randn=torch.randn_like)
    if (t + 1) % 125 == 0:
        strip.append(x_t[0])
show([torch.stack(strip)], ["x_0", *(f"t = {t}" for t in range(124, 1000, 125))])

# %% [markdown]
# ## All steps at once: Eq. 4
#
# $x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1-\bar\alpha_t}\, \epsilon$ with $\bar\alpha_t =
# \prod_{s \le t} (1-\beta_s)$
#
# A sum of normal variables is normal, so a thousand steps are one. `ddpm/diffusion.py:q_sample` is
# Eq. 4. It is why training is cheap: any x_t is one line away from x_0. To see that both agree,
# take the same image 4000 times to t = 300 and compare mean and standard deviation. The mean of
# 4000 has a standard error of 0.778 / √4000 = 0.012.

# %%
many = images[:1].expand(4000, -1, -1, -1)
x_t = many
for t in range(301):
    x_t = forward(process, x_t, s=t - 1, t=t, randn=torch.randn_like)
at_once = process.q_sample(many, torch.full((4000,), 300), torch.randn_like(many))
for name, x in {"301 steps of Eq. 2": x_t, "Eq. 4": at_once}.items():
    print(f"{name:20} mean of a dark pixel {x[:, 0, 0, 0].mean():.3f}, std {x.std(0).mean():.3f}")
alpha, sigma = process.alpha_sigma(300)
print(f"{'formula':20} mean of a dark pixel {-alpha:.3f}, std {sigma:.3f}")

# %% [markdown]
# ## Signal and noise
#
# What matters of a schedule is the **signal-to-noise ratio** $\bar\alpha_t / (1-\bar\alpha_t)$.
# Where it is 1, there is as much of the image as of noise.

# %%
schedules = {"linear": linear(1000, 1e-4, 0.02), "cosine": cosine(1000, 0.008, 0.999)}
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
for name, betas in schedules.items():
    other = GaussianDiffusion(betas=betas)
    left.plot(other.alphas_cumprod, label=name)
    right.plot(other.snr.log(), label=name)
    print(f"{name}: SNR falls below 1 at t = {(other.snr < 1).int().argmax()}")
left.set(title="alphas_cumprod", xlabel="t")
right.set(title="log SNR", xlabel="t", ylim=(-12, 10))
right.legend()

# %% [markdown]
# **Change and see.** Let `linear` go only to `beta_end=0.005`: how much of the digit is left at
# the last step? A sampler that starts from pure noise then starts where the network has never
# been. And with `T=100`, why does `linear` multiply its betas by ten (`rescale`)?
