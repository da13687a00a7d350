# %% [markdown]
# # 2 One step back, if the image is known
#
# Going back from x_t to x_{t-1} is hard, unless x_0 is known: then it is a formula. Training
# will make a network guess x_0, and everything else on this page stays as it is.

# %%
import math

import matplotlib.pyplot as plt
import torch
from common import digits

from ddpm import likelihood
from ddpm.diffusion import GaussianDiffusion
from ddpm.editing.repaint import forward
from ddpm.metrics.bound import bound
from ddpm.schedules.linear import linear

images, labels = digits()
process = GaussianDiffusion(betas=linear(T=1000, beta_start=1e-4, beta_end=0.02))

# %% [markdown]
# ## The posterior: Eq. 6 and 7
#
# $q(x_{t-1} | x_t, x_0) = \mathcal{N}(\tilde\mu_t(x_t, x_0),\ \tilde\beta_t I)$, Eq. 6, with
#
# $\tilde\mu_t = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t} x_0 +
# \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t} x_t$ and $\tilde\beta_t =
# \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t} \beta_t$, Eq. 7.
#
# `ddpm/diffusion.py:q_posterior` computes both. It is Bayes' rule for two normal distributions,
# which an experiment shows: noise one grey value a million times to t - 1 and on to t, and keep
# those that came to the same x_t, here within 0.01. That window adds 1 % to the variance, and some
# 13,000 are kept, so that chance changes it by another 1 or 2 %.

# %%
t, x_0 = 200, torch.full((1_000_000, 1, 1, 1), 0.5)
x_before = process.q_sample(x_0, torch.full((len(x_0),), t - 1), torch.randn_like(x_0))
x_t = forward(process, x_before, s=t - 1, t=t, randn=torch.randn_like)
same = (x_t - 0.3).abs() < 0.01
mean, variance = process.q_posterior(x_0[:1], torch.full_like(x_0[:1], 0.3), torch.tensor([t]))
print(f"counted:     mean {x_before[same].mean():.4f}, variance {x_before[same].var():.6f}")
print(f"Eq. 6 and 7: mean {mean.item():.4f}, variance {variance.item():.6f}")

# %% [markdown]
# ## The bound: Eq. 3 and 5
#
# A model of the steps back, $p_\theta(x_{t-1} | x_t)$, gives the images a probability. Its
# logarithm is bounded (Eq. 3) by a sum over the steps (Eq. 5):
#
# $L = \mathrm{KL}(q(x_T|x_0) \| p(x_T)) + \sum_{t>1} \mathrm{KL}(q(x_{t-1}|x_t,x_0) \|
# p_\theta(x_{t-1}|x_t)) - \log p_\theta(x_0|x_1)$
#
# `ddpm/metrics/bound.py:bound` is the whole sum, `ddpm/likelihood.py:prior_bits` its first part
# and `ddpm/likelihood.py:vb_term` one of the others, all in bits per pixel. The first part says
# how much of the image the last step still tells:

# %%
print(
    f"{likelihood.prior_bits(images[:100], process.alphas_cumprod[-1]).mean():.2e} bits per pixel"
)

# %% [markdown]
# For all of it we need a model. The simplest says that there is no noise: eps = 0, so that x_0 is
# x_t as it is, made larger. An image costs as many bits as this model is wrong:

# %%
pixels = process.codec.decode(images[:8])
terms = bound(
    lambda x_t, t: torch.zeros_like(x_t), process, pixels, variance="fixed_small", steps=60
)
print(f"{terms.total.mean():.2f} bits per pixel; a pixel stored as it is takes 8")

# %% [markdown]
# ## The same variance makes it a squared error: Eq. 8
#
# If both normal distributions have the variance $\sigma_t^2$, their KL is $L_{t-1} =
# \frac{1}{2\sigma_t^2} \|\tilde\mu_t - \mu_\theta\|^2$, Eq. 8. `ddpm/likelihood.py:normal_kl` is
# the general formula.

# %%
one, other, log_variance = torch.tensor(0.3), torch.tensor(0.1), torch.tensor(0.04).log()
print(likelihood.normal_kl(one, log_variance, other, log_variance), (0.3 - 0.1) ** 2 / (2 * 0.04))

# %% [markdown]
# ## The last step: Eq. 13
#
# An image has 256 grey levels. The last step's probability of one is the area under a normal
# density between two borders, open at black and white:
# `ddpm/likelihood.py:discretized_log_likelihood`. The probabilities of all levels sum to 1.

# %%
grey_levels = torch.arange(256) / 127.5 - 1
for std in (0.005, 0.02, 0.1):
    log_p = likelihood.discretized_log_likelihood(
        grey_levels, torch.tensor(0.2), torch.tensor(math.log(std))
    )
    plt.plot(grey_levels, log_p.exp(), label=f"std {std}, sum {log_p.exp().sum():.3f}")
plt.gca().set(xlabel="grey level", ylabel="probability")
plt.legend()

# %% [markdown]
# **Change and see.** In the first experiment, use t = 5 and t = 900: where does x_t count more,
# and where x_0? Plot `process.posterior_mean_coef_x_0` and `process.posterior_mean_coef_x_t` over
# t.
