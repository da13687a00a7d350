# %% [markdown]
# # 5 Labels and classifier-free guidance
#
# The network was trained with labels, and for one image in ten without. So it has two opinions of
# every x_t, and their difference points to what the label means.

# %%
import torch
from common import process, show, trained

from ddpm.denoising import Denoiser
from ddpm.guidance.classifier_free import ClassifierFree
from ddpm.pipeline import Pipeline
from ddpm.samplers.ddpm import DDPM

diffusion, model = process(), trained()

# %% [markdown]
# ## Two opinions
#
# The same x_t, noised from one image, with each label and without. Where the image can still be
# seen, the label changes little.

# %%
x_T = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(10, -1, -1, -1)
t = torch.full((10,), 950)
with torch.no_grad():
    without = Denoiser(model, diffusion).predict(x_T, t, None)
    with_label = Denoiser(model, diffusion).predict(x_T, t, torch.arange(10))
show(
    [without.x_0, with_label.x_0, with_label.x_0 - without.x_0],
    [str(i) for i in range(10)],
    ["none", "label", "difference"],
)

# %% [markdown]
# ## Go further than the label says: Ho & Salimans 2022
#
# $\tilde\epsilon = \epsilon_\theta(x_t) + s\,(\epsilon_\theta(x_t, y) - \epsilon_\theta(x_t))$
#
# `ddpm/guidance/classifier_free.py:ClassifierFree` is this formula: scale 0 ignores the label, 1
# is the trained prediction, above 1 goes further. (The paper's w is s - 1.) Every column below has
# its own noise.

# %%
scales, rows = (0.0, 1.0, 2.0, 4.0, 8.0), []
for scale in scales:
    guidance = ClassifierFree(scale=scale)
    sampler = DDPM(steps=25, variance="auto")
    pipeline = Pipeline(model, diffusion, sampler, (1, 16, 16), guidance=guidance, num_classes=10)
    rows.append(pipeline.sample(10, seed=0, labels=list(range(10))).float() / 127.5 - 1)
show(rows, [str(i) for i in range(10)], [f"s = {s:g}" for s in scales])

# %% [markdown]
# ## The price
#
# Guided images are more typical and less varied. Thirty-two images of one digit: the spread
# between them, as the mean standard deviation of a pixel, for each scale. It falls up to scale 2.
# At 4 and 8 it does not fall further, as the images differ in their faults: see the last row above.

# %%
for scale in scales:
    pipeline.guidance = ClassifierFree(scale=scale)
    images = pipeline.sample(32, seed=100, labels=[7]).float() / 127.5 - 1
    print(f"scale {scale:g}: {images.std(0).mean():.3f}")

# %% [markdown]
# **Change and see.** `ClassifierFree(scale=8, rescale=0.7)` takes back the contrast that a large
# scale adds. Try a label for noise that "wants" to be another digit: sort the columns by
# `rows[0]`.
