"""Train a diffusion model on handwritten digits and draw new ones: the method without Hydra.

    python examples/from_scratch.py

Two minutes on one CPU core. The loop is Algorithm 1 of Ho et al. 2020. `python run.py` trains the
same network for longer, with checkpoints, previews and resuming.
"""

import torch

from ddpm.data.digits import Digits
from ddpm.denoising import training_loss
from ddpm.diffusion import GaussianDiffusion
from ddpm.ema.simple import Simple
from ddpm.images import make_grid, save_png
from ddpm.models.unet import UNet
from ddpm.objectives.x_0 import X0
from ddpm.pipeline import Pipeline
from ddpm.samplers.ddim import DDIM
from ddpm.schedules.cosine import cosine
from ddpm.weightings.min_snr import MinSNR

STEPS, BATCH_SIZE, LEARNING_RATE = 3000, 32, 2e-3
SAMPLING_STEPS = 50
DATA_DIR, PICTURE = "data", "digits.png"


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a second thread does not pay for so small a network
    data = Digits(data_dir=DATA_DIR)  # 16x16
    size = {"image_size": 16, "channels": 1, "num_blocks": 1, "groups": 1, "patch_size": 2}
    model = UNet(**size, widths=[16, 64], attention_resolutions=[4])
    # How an image becomes noise, what the network predicts, and what a step counts in the loss.
    diffusion = GaussianDiffusion(cosine(), objective=X0(), weighting=MinSNR())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=STEPS)
    ema = Simple(model, decay=0.995, ramp=10)  # samples are drawn with averaged weights

    for step in range(STEPS):
        images, _ = data.__getitems__(torch.randint(len(data), (BATCH_SIZE,)).tolist())
        x_0 = diffusion.codec.encode(images)  # uint8 -> [-1, 1]
        loss = training_loss(diffusion, model, x_0)  # draws t and the noise
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        ema.update(step)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1:5} of {STEPS}   loss {loss.item():.4f}", flush=True)

    pipeline = Pipeline(ema.model, diffusion, DDIM(steps=SAMPLING_STEPS, eta=1.0), (1, 16, 16))
    save_png(make_grid(pipeline.sample(64, seed=0)), PICTURE, scale=4)
    print(f"64 new digits in {PICTURE}")


if __name__ == "__main__":
    main()
