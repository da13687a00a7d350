"""What a pixel looks at: the attention of a level of the network on one image."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ddpm.denoising import network_output
from ddpm.figures import style
from ddpm.figures.base import Drawing, Material, NotDrawn, noisy, times, trained
from ddpm.models.layers import SelfAttention


def draw(material: Material) -> Drawing:
    """Weights of four pixels at three noise levels, mean over the heads."""
    pipeline, diffusion = trained(material), material.diffusion
    model = pipeline.denoiser().model  # in the precision of the run
    layers = [m for m in pipeline.model.modules() if isinstance(m, SelfAttention)]
    if not layers:
        raise NotDrawn("the network has no self-attention over pixels")
    x_0 = material.x_0(1)
    eps, ts = material.noise(x_0), [diffusion.T // 10, diffusion.T // 3, 2 * diffusion.T // 3]
    label = material.label(1)
    noised = [noisy(diffusion, x_0, t, eps) for t in ts]
    maps = [
        finest(partial(network_output, diffusion, model), layers, x_t, t, label)
        for x_t, t in zip(noised, ts, strict=True)
    ]
    side = maps[0].shape[0]
    queries = [(y, x) for y in (side // 4, 3 * side // 4) for x in (side // 4, 3 * side // 4)]
    figure = style.new(10, 6.2)
    rows: list[dict[str, Any]] = []
    size = x_0.shape[-1]
    for i, (axes_row, t, weights) in enumerate(
        zip(figure.subplots(3, 5, squeeze=False), ts, maps, strict=True)
    ):
        image = style.pixels(diffusion.codec.decode(noisy(diffusion, x_0, t, eps))[0])
        axes_row[0].imshow(image, extent=(0, size, size, 0), vmin=0, vmax=255)
        brightest = max(weights[query].max().item() for query in queries)
        axes_row[0].set_ylabel(times(diffusion, [t])[0])
        for axes, (y, x) in zip(axes_row[1:], queries, strict=True):
            extent = (0, size, size, 0)
            axes.imshow(
                weights[y, x].numpy(), extent=extent, cmap="cividis", vmin=0, vmax=brightest
            )
            place = (x + 0.5) * size / side, (y + 0.5) * size / side
            axes.plot(*place, "s", color=style.ACCENT, fillstyle="none", markersize=9, mew=2)
            if i == 0:
                axes.set_title(f"from ({y}, {x})")
            rows += [
                {
                    "t": t,
                    "from_y": y,
                    "from_x": x,
                    "y": v,
                    "x": u,
                    "weight": weights[y, x, v, u].item(),
                }
                for v in range(side)
                for u in range(side)
            ]
        for axes in axes_row:
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
    figure.axes[0].set_title("$x_t$")
    return Drawing(
        name="attention",
        title="What a pixel looks at",
        equation=r"\mathrm{softmax}(q\,k^{\!\top}/\sqrt{d})",
        source="Vaswani et al. 2017, Eq. 1",
        code="ddpm/models/layers.py:SelfAttention",
        text=f"Attention of the network's finest level with attention ({side} x {side} places), "
        "as the mean of its heads, on one image at three noise levels. Each map shows how the "
        "place in the square weights all places (bright: much); the weights of a map sum to 1. "
        "Compare the rows: at another noise level the same layer looks at other places.",
        figure=figure,
        rows=rows,
    )


def finest(
    evaluate: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    layers: list[SelfAttention],
    x_t: Tensor,
    t: int,
    label: Tensor | None,
) -> Tensor:
    """Weights of the last layer with the most places on one image: (H, W, H, W), float32; they sum
    to 1 over the last two."""
    inputs: list[tuple[SelfAttention, Tensor]] = []

    def keep(layer: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, SelfAttention)
        inputs.append((layer, given[0]))

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        with torch.no_grad():
            evaluate(x_t, torch.tensor([t], device=x_t.device), label)
    finally:
        for hook in hooks:
            hook.remove()
    layer, x = max(reversed(inputs), key=lambda pair: pair[1].shape[-1])
    return (
        attention_weights(layer, x)[0].mean(0).unflatten(1, x.shape[2:]).unflatten(0, x.shape[2:])
    )


def attention_weights(layer: SelfAttention, x: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) of a layer for its input x (B, C, H, W): (B, heads, HW, HW)."""
    with torch.no_grad():
        pixels = rearrange(layer.group_norm(x), "b c h w -> b (h w) c")
        pixels = pixels.to(layer.to_q.weight.dtype)
        q, k = (
            rearrange(to(pixels), "b n (heads d) -> b heads n d", heads=layer.num_heads).float()
            for to in (layer.to_q, layer.to_k)
        )
        return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1).cpu()
