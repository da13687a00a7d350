"""The reverse process of one image: x_t, and what the network believes at each step."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddpm.denoising import Denoiser, Prediction
from ddpm.figures import style
from ddpm.figures.base import Drawing, Material, log_snr, spread, times, trained
from ddpm.pipeline import Pipeline

COLUMNS = 9


@dataclass(eq=False)
class CallRecorder(Denoiser):
    """A denoiser that keeps its inputs and predictions, in order."""

    calls: list[tuple[int, Tensor, Prediction]] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: int) -> Prediction:
        prediction = super().__call__(x_t, t)
        self.calls.append((t, x_t, prediction))
        return prediction


def record(
    pipeline: Pipeline, seeds: list[int], labels: list[int] | None
) -> tuple[list[tuple[int, Tensor, Prediction]], Tensor]:
    """All calls of the network while images are drawn, and the images x_0, float32."""
    plain = pipeline.denoiser(pipeline.to_labels(labels))
    recorder = CallRecorder(plain.model, plain.diffusion, plain.guidance, plain.label)
    x_T, randn = pipeline.noise(seeds)
    with torch.no_grad():
        *_, x_0 = pipeline.sampler(recorder, x_T, randn)
    return recorder.calls, x_0


def draw(material: Material) -> Drawing:
    """Rows x_t, x_0_hat and eps_hat of one image, from noise to the image."""
    pipeline = trained(material)
    labels = None if pipeline.num_classes is None else [material.first_seed % pipeline.num_classes]
    calls, x_0 = record(pipeline, [material.first_seed], labels)
    shown = material.shown
    chosen = [calls[i] for i in spread(len(calls), COLUMNS)]
    images = [
        [*(shown(x_t)[0] for _, x_t, _ in chosen), shown(x_0)[0]],
        [*(shown(p.x_0)[0] for _, _, p in chosen), shown(x_0)[0]],
        [shown(p.eps / 3)[0] for _, _, p in chosen] + [torch.full_like(shown(x_0)[0], 255)],
    ]
    figure = style.new(10, style.strip_height(3, len(images[0]), shape=x_0.shape))
    titles = [*times(material.diffusion, [t for t, _, _ in chosen]), "image\n"]
    style.tiles(figure.subplots(), images, titles, [r"$x_t$", r"$\hat x_0$", r"$\hat\epsilon$"])
    rows: list[dict[str, Any]] = []
    for i, (t, x_t, p) in enumerate(calls):
        stats = {"x_t": x_t, "x_0_hat": p.x_0, "eps_hat": p.eps}
        row = {"call": i, "t": t, "log_snr": log_snr(material.diffusion, t)}
        row |= {
            f"{n}_{s}": getattr(v, s)().item() for n, v in stats.items() for s in ("mean", "std")
        }
        rows.append(row | {"x_0_hat_to_image": (p.x_0 - x_0).square().mean().sqrt().item()})
    return Drawing(
        name="reverse",
        title="Reverse process: from noise to image",
        equation=r"\hat x_0=(x_t-\sqrt{1-\bar\alpha_t}\,\hat\epsilon)\,/\,\sqrt{\bar\alpha_t}",
        source="Ho et al. 2020, Algorithm 2 and Eq. 15",
        code="ddpm/denoising.py:predict",
        text=f"One image (seed {material.first_seed}) as sampler={material.names.get('sampler')} "
        f"draws it with {len(calls)} calls of the network. x_0_hat is the image that the network "
        "sees in x_t; it is blurred at first, and gets sharp as the noise goes: large shapes are "
        "decided early, details late. eps_hat is the rest, x_t without x_0_hat, divided by the "
        "size of the noise; at the last steps that is so small that eps_hat shows structure.",
        figure=figure,
        rows=rows,
    )
