# %% [markdown]
# # 3 Training: guess the noise
#
# A network that looks at x_t and says what x_0 was turns the formula of page 2 into a way back.
# This page follows the paper from the bound to its famous two-line loss, and trains.

# %%
import matplotlib.pyplot as plt
import torch
from common import STEPS, WEIGHTS, digits, network, process

from ddpm import likelihood
from ddpm.denoising import NO_LABEL, training_loss, training_losses
from ddpm.diffusion import GaussianDiffusion
from ddpm.ema.simple import Simple
from ddpm.objectives.eps import Eps
from ddpm.schedules.linear import linear

images, labels = digits()

# %% [markdown]
# ## From the bound to noise: Eq. 9 to 12
#
# Put Eq. 4, solved for x_0, into the mean of Eq. 7: what Eq. 8 compares is
# $\frac{1}{\sqrt{\alpha_t}}(x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\epsilon)$ (Eq. 9 and
# Eq. 10), so let the network predict the noise and use the same form, Eq. 11:
#
# $\mu_\theta = \frac{1}{\sqrt{\alpha_t}}
# (x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\epsilon_\theta)$
#
# The step of the bound is then a weighted error of the noise, Eq. 12:
#
# $\frac{\beta_t^2}{2\sigma_t^2\alpha_t(1-\bar\alpha_t)} \|\epsilon - \epsilon_\theta\|^2$
#
# In the code the mean always comes from x_0 (`ddpm/diffusion.py:q_posterior`), which is the same.
# Here is Eq. 12 beside `ddpm/likelihood.py:vb_term`, for a network that is wrong about the noise
# by 0.1 everywhere:

# %%
linear_process = GaussianDiffusion(betas=linear(T=1000, beta_start=1e-4, beta_end=0.02))
x_0, t = images[:4], torch.tensor([2, 50, 300, 900])
eps = torch.randn_like(x_0)
x_t = linear_process.q_sample(x_0, t, eps)
alpha, sigma = linear_process.alpha_sigma_like(x_t, t)
x_0_hat = Eps().predict_x_0(x_t, eps + 0.1, alpha, sigma)  # Eq. 15
mean_q, variance = linear_process.q_posterior(x_0, x_t, t)
mean_p, _ = linear_process.q_posterior(x_0_hat, x_t, t)
term = likelihood.vb_term(x_0, mean_q, variance.log(), mean_p, variance.log(), t)
beta, a = linear_process.betas[t], linear_process.alphas_cumprod[t]
eq_12 = beta**2 / (2 * variance.flatten() * (1 - beta) * (1 - a)) * 0.1**2 / torch.tensor(2).log()
for row in zip(t.tolist(), term.tolist(), eq_12.tolist(), strict=True):
    print("t = {:3}   vb_term {:.7f}   Eq. 12 {:.7f} bits per pixel".format(*row))

# %% [markdown]
# ## The simple loss: Eq. 14
#
# The weight of Eq. 12 is hundreds of times larger at small t. The paper leaves it out, which draws
# better images: $L_\mathrm{simple} = \mathrm{E}\,\|\epsilon - \epsilon_\theta(\sqrt{\bar\alpha_t}
# x_0 + \sqrt{1-\bar\alpha_t}\epsilon, t)\|^2$. `ddpm/denoising.py:training_losses` is Eq. 14, with
# weights and targets of your choice: predicting eps, x_0 or v are three ways to say the same
# thing, which differ in what a small error means. A network that always answers 0 has the loss of
# the noise itself, 1:

# %%
losses = training_losses(linear_process, lambda x, t: torch.zeros_like(x), x_0, t, eps)
print(losses)

# %% [markdown]
# ## Algorithm 1
#
# Take images, draw t and noise, take a gradient step; repeat. `ddpm/denoising.py:training_loss`
# draws and computes. A tenth of the labels is hidden, which page 5 needs. An average of the
# weights, `Simple`, draws better than the weights themselves. The process here is the one of the
# default run (cosine, x_0, Min-SNR weights), which is quick on small images.

# %%
diffusion, model = process(), network()
ema = Simple(model, decay=0.995, ramp=10)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99))
decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=STEPS)
curve = []
for step in range(STEPS):
    batch = torch.randint(len(images), (32,))
    label = torch.where(torch.rand(32) < 0.1, NO_LABEL, labels[batch])
    loss = training_loss(diffusion, model, images[batch], label=label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    decay.step()
    ema.update(step)
    curve.append(loss.item())
torch.save(ema.model.state_dict(), WEIGHTS)
plt.plot(torch.tensor(curve).unfold(0, 25, 25).mean(1))
plt.gca().set(xlabel="steps / 25", ylabel="loss", yscale="log")
last = ", ".join(f"{loss:.4f}" for loss in curve[-3:])
print(f"{sum(p.numel() for p in model.parameters()):,} weights, last losses {last}")

# %% [markdown]
# **Change and see.** The curve flattens long before the images stop getting better: train for
# `WALKTHROUGH_STEPS=300` and for 3000 and look at page 4. Replace `process()` by `linear_process`:
# the loss is then of the noise, and larger or smaller loss means nothing between the two.
