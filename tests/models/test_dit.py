"""The transformers: published sizes, diffusers' outputs, and what is refused."""

import pytest
import torch
from torch import nn

from ddpm.errors import InputError
from ddpm.models.dit import DiT
from ddpm.models.jit import JiT
from ddpm.models.transformer_blocks import sine_positions

SMALL = {"size": None, "depth": 2, "width": 16, "num_heads": 2, "patch_size": 4}
SMALL |= {"channels": 3, "out_channels": 6, "image_size": 16, "num_classes": 5}
OF_SIZE = dict.fromkeys(("depth", "width", "num_heads"))


@pytest.mark.parametrize(
    ("size", "millions"),
    [("S", 33), ("B", 130), ("L", 458), ("XL", 675)],
)
def test_parameter_counts_are_those_of_the_paper(size, millions):
    """Table 4 of Peebles & Xie: latents of 32x32x4 in patches of 2x2, 1000 classes, 8 channels."""
    with torch.device("meta"):
        net = DiT(
            channels=4,
            out_channels=8,
            image_size=32,
            num_classes=1000,
            size=size,
            patch_size=2,
            **OF_SIZE,
        )
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == millions


def diffusers_weights(state):
    """The state dict of diffusers' DiTTransformer2DModel with these weights of `DiT`."""
    old = dict(state)
    half = old["time_embedding.linear_1.weight"].shape[1] // 2
    emb = {
        # theirs are cosines, then sines
        "timestep_embedder.linear_1.weight": old["time_embedding.linear_1.weight"].roll(half, 1),
        "timestep_embedder.linear_1.bias": old["time_embedding.linear_1.bias"],
        "timestep_embedder.linear_2.weight": old["time_embedding.linear_2.weight"],
        "timestep_embedder.linear_2.bias": old["time_embedding.linear_2.bias"],
        "class_embedder.embedding_table.weight": old["class_embedding.weight"],
    }
    new = {}
    for kind in ("weight", "bias"):
        new[f"pos_embed.proj.{kind}"] = old[f"embed.{kind}"]
        new[f"proj_out_1.{kind}"] = old[f"modulation.{kind}"]
        new[f"proj_out_2.{kind}"] = old[f"head.{kind}"]
    new["pos_embed.proj.weight"] = new["pos_embed.proj.weight"].unflatten(1, (-1, 4, 4))
    for number in range(2):
        there, here = f"transformer_blocks.{number}", f"blocks.{number}"
        new |= {f"{there}.norm1.emb.{name}": value for name, value in emb.items()}
        for kind in ("weight", "bias"):
            q, k, v = old[f"{here}.to_qkv.{kind}"].chunk(3)
            new |= {
                f"{there}.norm1.linear.{kind}": old[f"{here}.modulation.{kind}"],
                f"{there}.attn1.to_q.{kind}": q,
                f"{there}.attn1.to_k.{kind}": k,
                f"{there}.attn1.to_v.{kind}": v,
                f"{there}.attn1.to_out.0.{kind}": old[f"{here}.to_out.{kind}"],
                f"{there}.ff.net.0.proj.{kind}": old[f"{here}.linear_1.{kind}"],
                f"{there}.ff.net.2.{kind}": old[f"{here}.linear_2.{kind}"],
            }
    return new


@pytest.mark.parametrize("image_size", [16, 40])
def test_dit_equals_diffusers_dit(image_size):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    ours = DiT(**SMALL | {"image_size": image_size}).eval()
    for weight in ours.parameters():
        nn.init.normal_(weight, std=0.2)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=image_size,
        patch_size=4,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    ).eval()
    missing, unknown = theirs.load_state_dict(diffusers_weights(ours.state_dict()), strict=False)
    assert not unknown
    assert set(missing) <= {"pos_embed.pos_embed"}  # a constant
    x, t = torch.randn(3, 3, image_size, image_size), torch.tensor([0, 3, 999])
    label = torch.tensor([4, 0, 5])  # 5 is the null class
    with torch.no_grad():
        wanted = theirs(x, t, label).sample
        torch.testing.assert_close(ours(x, t, label), wanted, atol=1e-5, rtol=1e-5)
    assert wanted.std() > 0.1


def test_position_embeddings_differ_between_patches():
    positions = sine_positions(3, 4, 8)
    assert positions.shape == (12, 8)
    gaps = torch.cdist(positions, positions) + 9 * torch.eye(12)
    assert gaps.min() > 0.1
    assert torch.equal(positions[:, 4:].unflatten(0, (3, 4))[:, 0], positions[::4, 4:])


def test_jit_embeds_patches_through_few_dimensions():
    net = JiT(**SMALL, bottleneck=3)
    narrow, wide = net.embed
    assert narrow.weight.shape == (3, 3 * 4 * 4)
    assert narrow.bias is None
    assert wide.weight.shape == (16, 3)
    with torch.device("meta"):
        sizes = SMALL | OF_SIZE | {"image_size": 256, "patch_size": 16, "num_classes": 1000}
        big = JiT(**sizes | {"size": "B"}, bottleneck=128)
    assert (len(big.blocks), big.embed[0].weight.shape) == (12, (128, 3 * 16 * 16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 30}, r"data.image_size=30: model=dit takes patches of 4x4 pixels, so the "),
        ({"image_size": 30}, r"must be a multiple of 4 \(nearest: 28, 32\)"),
        ({"size": "M"}, "model.size=M: must be one of S, B, L, XL, H"),
        ({"depth": None}, "model.depth: must be set, as model.size=null"),
        ({"depth": 0}, "model.depth=0: must be a whole number from 1"),
        ({"width": 18}, r"model.width=18: must be a multiple of 4.*nearest: 16, 20"),
        ({"num_heads": 3}, r"model.width=16: not a multiple of model.num_heads=3 \(nearest: 15"),
        ({"patch_size": 0}, "model.patch_size=0: must be a whole number from 1"),
        ({"num_classes": 0}, "model.num_classes=0"),
    ],
)
def test_incompatible_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message) as error:
        DiT(**SMALL | changes)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"model.bottleneck=0"):
        JiT(**SMALL, bottleneck=0)


def test_keys_replace_those_of_the_size():
    with torch.device("meta"):
        net = DiT(**SMALL | {"size": "S", "depth": 3, "width": None, "num_heads": None})
    assert (len(net.blocks), net.head.in_features, net.blocks[0].num_heads) == (3, 384, 6)
