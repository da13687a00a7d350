"""What guidance does: the same noise at several scales."""

import copy
from typing import Any

from ddpm.figures import style
from ddpm.figures.base import Drawing, Material, NotDrawn, trained
from ddpm.guidance.classifier_free import ClassifierFree

SCALES, COLUMNS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0), 10


def draw(material: Material) -> Drawing:
    """A row for each guidance scale, a column for each label; each column has its own noise."""
    pipeline = trained(material)
    if pipeline.num_classes is None:
        raise NotDrawn("the network takes no labels (train with data.conditional=true)")
    labels = list(range(min(COLUMNS, pipeline.num_classes)))
    seeds = [material.first_seed + i for i in labels]
    base = pipeline.guidance if hasattr(pipeline.guidance, "scale") else ClassifierFree(scale=1)
    drawn = {}
    for scale in SCALES:
        scaled = copy.copy(pipeline)
        scaled.guidance = copy.copy(base)
        scaled.guidance.scale = scale
        drawn[scale] = scaled.sample_seeds(seeds, labels)
    encode = material.diffusion.codec.encode
    pictures = {scale: material.shown(encode(images)) for scale, images in drawn.items()}
    shape = pipeline.shape
    figure = style.new(10, style.strip_height(len(SCALES), max(4, len(labels)), shape=shape))
    axes = figure.subplots()
    style.tiles(
        axes,
        [list(i) for i in pictures.values()],
        list(map(str, labels)),
        [f"s = {s:g}" for s in SCALES],
    )
    axes.set_title("label", fontsize=11, fontweight="normal")
    rows: list[dict[str, Any]] = []
    for scale, images in drawn.items():
        change = (encode(images) - encode(drawn[1.0])).square().flatten(1).mean(1).sqrt()
        contrast = encode(images).flatten(1).std(1)
        rows += [
            {"scale": scale, "label": label, "contrast": c, "change_from_scale_1": d}
            for label, c, d in zip(labels, contrast.tolist(), change.tolist(), strict=True)
        ]
    return Drawing(
        name="guidance",
        title="Guidance: the same noise at several scales",
        equation=r"\tilde\epsilon=\epsilon_\theta(x_t)+s\,(\epsilon_\theta(x_t,y)"
        r"-\epsilon_\theta(x_t))",
        source="Ho & Salimans 2022, Eq. 6 (w = s - 1)",
        code="ddpm/guidance/classifier_free.py:ClassifierFree",
        text="All images of a column start from the same noise. Scale 0 ignores the label, 1 uses "
        "it as trained, and above 1 the prediction moves further away from the one without a "
        "label: images become more typical of their class, with more contrast and less variety.",
        figure=figure,
        rows=rows,
    )
