"""What a place of the image looks at: the attention of one layer of the network on one image."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor, nn

from ddpm.denoising import network_output
from ddpm.figures import style
from ddpm.figures.base import Drawing, Material, NotDrawn, noisy, times, trained
from ddpm.models.layers import SelfAttention
from ddpm.models.transformer_blocks import Block, PatchTransformer

Evaluate = Callable[[], object]  # one call of the network
Place = tuple[int, int]


def draw(material: Material) -> Drawing:
    """Weights of four places at three noise levels, mean over the heads."""
    pipeline, diffusion = copy.copy(trained(material)), material.diffusion
    pipeline.graphs = None  # every call must pass through the layers
    model = pipeline.denoiser().model  # in the precision of the run
    x_0 = material.x_0(1)
    eps, ts = material.noise(x_0), [diffusion.T // 10, diffusion.T // 3, 2 * diffusion.T // 3]
    x_ts = [noisy(diffusion, x_0, t, eps) for t in ts]
    maps = []
    for t, x_t in zip(ts, x_ts, strict=True):
        step = torch.tensor([t], device=x_t.device)
        call = partial(network_output, diffusion, model, x_t, step, material.label(1))
        with torch.no_grad():
            which, heads, weights = attended(pipeline.model, call, x_0.shape)
        maps.append(weights)
    rows, columns = maps[0].shape[:2]
    across = (columns // 4, 3 * columns // 4)
    places = list(dict.fromkeys((y, x) for y in (rows // 4, 3 * rows // 4) for x in across))
    return Drawing(
        name="attention",
        title="What a place of the image looks at",
        equation=r"\mathrm{softmax}(q\,k^{\!\top}/\sqrt{d})",
        source="Vaswani et al. 2017, Eq. 1",
        code="ddpm/models/layers.py:SelfAttention",
        text=f"The attention of {which}, {rows} x {columns} places, as the mean of its {heads} "
        "heads, on one image at three noise levels. Each map shows how the place in the square "
        "weights all places: bright is much, and the weights of a map sum to 1. Compare the rows: "
        "at another noise level the same layer looks at other places.",
        figure=picture(material, ts, x_ts, maps, places),
        rows=[
            {"t": t, "from_y": y, "from_x": x, "y": v, "x": u, "weight": weights[y, x, v, u].item()}
            for t, weights in zip(ts, maps, strict=True)
            for y, x in places
            for v in range(rows)
            for u in range(columns)
        ],
    )


def picture(
    material: Material, ts: list[int], x_ts: list[Tensor], maps: list[Tensor], places: list[Place]
) -> Figure:
    """A row for each t: x_t with the numbered places, and the map of each place."""
    height, width = x_ts[0].shape[-2:]
    rows, columns = maps[0].shape[:2]
    frame: dict[str, Any] = {"extent": (0, width, height, 0), "vmin": 0}
    square: dict[str, Any] = {"color": style.ACCENT, "marker": "s", "fillstyle": "none", "mew": 2}
    text: dict[str, Any] = {"weight": "bold", "ha": "center", "va": "center"}
    text |= {"color": style.ACCENT, "path_effects": [withStroke(linewidth=3, foreground="white")]}
    brightest = max(weights[place].max().item() for weights in maps for place in places)
    shape = (len(ts), len(places) + 1)
    figure = style.new(10, style.strip_height(*shape, width=9.4, shape=(height, width)))
    table = figure.subplots(*shape, squeeze=False)
    for axes_row, t, x_t, weights in zip(table, ts, x_ts, maps, strict=True):
        image = style.pixels(material.shown(x_t)[0])
        axes_row[0].imshow(image, vmax=255, **frame)
        axes_row[0].set_ylabel(times(material.diffusion, [t])[0])
        for n, (axes, (y, x)) in enumerate(zip(axes_row[1:], places, strict=True), 1):
            shown = axes.imshow(weights[y, x].numpy(), cmap="cividis", vmax=brightest, **frame)
            at = (x + 0.5) * width / columns, (y + 0.5) * height / rows
            axes_row[0].text(*at, str(n), fontsize=13, **text)
            axes.plot(*at, markersize=9, **square)
            if t == ts[0]:
                axes.set_title(f"from place {n}", fontweight="normal")
    for axes in table.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    table[0, 0].set_title("$x_t$")
    bar = figure.colorbar(shown, ax=list(table.flat), fraction=0.03, pad=0.02)
    bar.set_label(f"weight ({1 / (rows * columns):.2g} if all were equal)")
    return figure


def attended(model: nn.Module, call: Evaluate, shape: tuple[int, ...]) -> tuple[str, int, Tensor]:
    """The layer that is shown, its number of heads, and its weights while the network is called for
    one image of this shape: (H, W, H, W), float32, mean over heads; sums over the last two are 1.

    Raises:
        NotDrawn: the network has no self-attention over places of the image.
    """
    transformer = next((m for m in model.modules() if isinstance(m, PatchTransformer)), None)
    if transformer is not None:
        number = (len(transformer.blocks) + 1) // 2
        block = transformer.blocks[number - 1]
        assert isinstance(block, Block)
        (qkv,), heads = outputs([block.to_qkv], call), block.num_heads
        q, k, _ = rearrange(qkv, "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=heads)
        grid = tuple(side // transformer.patch_size for side in shape[-2:])
        return f"block {number} of {len(transformer.blocks)}", heads, mean_map(q, k, grid)
    layers = [m for m in model.modules() if isinstance(m, SelfAttention)]
    if not layers:
        raise NotDrawn("the network has no self-attention over places of the image")
    found = outputs([m for layer in layers for m in (layer, layer.to_q, layer.to_k)], call)
    parts = zip(layers, found[::3], found[1::3], found[2::3], strict=True)
    layer, x, *qk = max(reversed(list(parts)), key=lambda part: part[1].shape[2:].numel())
    q, k = (rearrange(p, "b n (heads d) -> b heads n d", heads=layer.num_heads) for p in qk)
    which = f"the network's last layer with the most places (of {len(layers)} with attention)"
    return which, layer.num_heads, mean_map(q, k, tuple(x.shape[-2:]))


def outputs(modules: list[nn.Module], call: Evaluate) -> list[Tensor]:
    """The output of each module in one call of the network."""
    found: dict[nn.Module, Tensor] = {}
    hooks = [m.register_forward_hook(lambda m, _, y: found.update({m: y})) for m in modules]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return [found[module] for module in modules]


def mean_map(q: Tensor, k: Tensor, grid: tuple[int, ...]) -> Tensor:
    """softmax(q kᵀ / √d) of the first image, mean over heads: (1, heads, HW, d) -> (H, W, H, W)."""
    weights = attention_weights(q, k)[0].mean(0)
    return weights.unflatten(1, grid).unflatten(0, grid).cpu()


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) in float32: (B, heads, N, d) -> (B, heads, N, N)."""
    return (q.float() @ k.float().transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
