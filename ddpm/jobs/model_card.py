"""The model card of an exported network: README.md, as the Hugging Face Hub shows it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm.errors import InputError, shown
from ddpm.limits.image_size import sides
from ddpm.runner.checkpoints import diffusers_folder
from ddpm.runner.checkpoints.diffusers_config import DDIM
from ddpm.runner.config.base_run import run_folder
from ddpm.runner.runs import scores as scores_file
from ddpm.runner.runs.scores import Scored


def scores(checkpoint: Path) -> list[Scored]:
    """The scores of a checkpoint in its run's folder, if there are any."""
    try:
        return list(scores_file.latest(scores_file.read(run_folder(checkpoint))).values())
    except InputError:
        return []


def text(
    state: dict[str, Any],
    weights: str,
    betas: list[float] | None,
    scored: Sequence[Scored] = (),
) -> str:
    """The card, in Markdown with the Hub's header.

    Args:
        state: of a checkpoint.
        weights: which of its weights: "ema", an average by its length as "ema:0.05", or "model".
        betas: of its process, for a pipeline of diffusers; None: for this program's own format.
        scored: its scores; those of other steps are left out.
    """
    hparams, choices = state["hparams"], state["hparams"]["choices"]
    tensors = state[weights] if betas is None else diffusers_folder.network(state[weights])
    parameters = sum(tensor.numel() for tensor in tensors.values())
    library = "hydra-ddpm" if betas is None else "diffusers"
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: unconditional-image-generation",
        "tags:",
        *(f"- {tag}" for tag in dict.fromkeys(["ddpm", "hydra-ddpm", library])),
        "---",
        "",
        f"# {shown(choices.get('model'))} on {shown(choices.get('data'))}",
        "",
        "A denoising diffusion model, trained with hydra-ddpm.",
        "",
        *_table(("", ""), _facts(state, weights, parameters).items()),
        "",
        *_scores([score for score in scored if score.step == state["step"]]),
        "## Sample",
        "",
        *(_ours() if betas is None else _diffusers(hparams, betas)),
    ]
    return "\n".join(lines) + "\n"


def _facts(state: dict[str, Any], weights: str, parameters: int) -> dict[str, str]:
    """Rows of the card: the network and its training."""
    hparams, choices = state["hparams"], state["hparams"]["choices"]
    data = hparams["data"]
    height, width = sides(data["image_size"])
    channels = "1 channel" if data["channels"] == 1 else f"{data['channels']} channels"
    low, high = data.get("value_range") or (0, 255)
    return {
        "data": f"{shown(choices.get('data'))}, {width}x{height} pixels, {channels}",
        "values": f"{low:g} and {high:g} are -1 and 1 for the network",
        "classes": str(data["num_classes"]) if data.get("conditional") else "none: unconditional",
        "network": f"{shown(choices.get('model'))}, {parameters:,} parameters",
        "objective": shown(choices.get("objective", "eps")),
        "schedule": f"{shown(choices.get('schedule'))}, T = {hparams['schedule'].get('T')}",
        "steps": f"{state['step']:,}",
        "weights": _averaged(weights),
    }


def _averaged(weights: str) -> str:
    kind, _, length = weights.partition(":")
    if kind == "model":
        return "of the last step, without averaging"
    return f"averaged over the steps{f', with a length of {length}' if length else ''}"


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _scores(scored: Sequence[Scored]) -> list[str]:
    if not scored:
        return []
    rows = [
        (
            f"{score.name}{f' ({score.reference})' if score.reference else ''}",
            f"{score.value:.4g} {score.unit}".strip(),
            ""
            if score.low is None or score.high is None
            else f"{score.low:.4g} to {score.high:.4g}",
            f"{score.n:,}",
        )
        for score in scored
    ]
    head = ("score", "value", "95 % interval", "pictures")
    return ["## Scores", "", *_table(head, rows), ""]


def _ours() -> list[str]:
    return [
        "    python run.py job=sample checkpoint=<this folder>",
        "",
        "```python",
        "from ddpm import Pipeline",
        "",
        'images = Pipeline.from_checkpoint("<this folder>").sample(16)  # uint8 (16, C, H, W)',
        "```",
    ]


def _diffusers(hparams: dict[str, Any], betas: list[float]) -> list[str]:
    """How to sample with diffusers, and with this program."""
    data = hparams["data"]
    height, width = sides(data["image_size"])
    _, scheduler = diffusers_folder.configs(hparams, betas)
    deterministic = scheduler["_class_name"] == DDIM
    T = scheduler["num_train_timesteps"]
    steps = min(hparams.get("sampler", {}).get("steps") or T, T)
    lines = ["```python"]
    if data.get("conditional"):
        lines += [
            "import torch",
            "from diffusers import DDPMPipeline",
            "",
            'pipeline = DDPMPipeline.from_pretrained("<this folder>")',
            "unet, scheduler = pipeline.unet, pipeline.scheduler",
            f"labels = torch.arange({data['num_classes']})"
            + (f"  # {data['num_classes']}: no label" if _null_class(hparams) else ""),
            f"x = torch.randn(len(labels), {data['channels']}, {height}, {width})",
            f"scheduler.set_timesteps({steps})",
            "with torch.no_grad():",
            "    for t in scheduler.timesteps:",
            "        x = scheduler.step(unet(x, t, labels).sample, t, x).prev_sample",
            "images = (x / 2 + 0.5).clamp(0, 1)  # (N, C, H, W)",
        ]
    else:
        name = "DDIMPipeline" if deterministic else "DDPMPipeline"
        more = ", use_clipped_model_output=True" if deterministic else ""
        more += "" if data["channels"] in (1, 3) else ', output_type="np"'  # no picture of Pillow
        lines += [
            f"from diffusers import {name}",
            "",
            f'pipeline = {name}.from_pretrained("<this folder>")',
            f"images = pipeline(batch_size=16, num_inference_steps={steps}{more}).images",
        ]
    return [*lines, "```", "", *_ours()]


def _null_class(hparams: dict[str, Any]) -> bool:
    return hparams["model"].get("null_class", True)
