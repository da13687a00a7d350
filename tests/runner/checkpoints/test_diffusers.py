"""Pipelines of diffusers, both ways; diffusers itself writes and opens the folders, locally."""

import json
import random
import shutil

import pytest
import torch
from support.base import TINY
from support.diffusers_models import CASES, CIFAR10, LSUN, randomised, saved, small, unet_of
from support.hostile import watched
from support.image_sets import random_pixels, save
from support.runs import SAMPLE, go, pngs

from ddpm import Pipeline
from ddpm.errors import InputError
from ddpm.pretrained import load_network
from ddpm.runner.checkpoints import checkpoint, diffusers_config, diffusers_folder, summary
from ddpm.runner.safe_io.plain import Refused
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM

diffusers = pytest.importorskip("diffusers")

RESUNET = ["model=resunet", "model.widths=[8,16]", "model.groups=4", "model.num_res_blocks=1"]
WORDS = [
    *(
        word
        for word in TINY
        if not word.startswith(("model", "sampler", "job.max_steps", "job.save"))
    ),
    *("objective=eps", "schedule.T=40", "job.max_steps=3", "job.save_every=null"),
    *("job.sample_every=null", "job.warmup_steps=0", "optimizer.lr=1e-2", *RESUNET),
]
EXPORT = ["job=export", "job.format=diffusers", "hardware=cpu"]


def agrees(folder, unet, size=None):
    """The largest difference of eps between a folder, as we read it, and diffusers' network."""
    model, *_ = load_network(folder)
    config = unet.config
    size = size or config.sample_size
    x = torch.randn(2, config.in_channels, size, size)
    t = torch.tensor([0, 700])
    labels = None if config.num_class_embeds is None else torch.tensor([0, 1])
    with torch.no_grad():
        ours = model(x, t) if labels is None else model(x, t, labels)
        theirs = unet(x, t, labels).sample
    assert theirs.std() > 1e-3, "a network that says nothing proves nothing"
    return (ours - theirs).abs().max().item()


# reading


@pytest.mark.parametrize("name", CASES)
def test_small_versions_of_published_networks_agree_with_diffusers(name, tmp_path):
    """The configurations of the Hub with a sixteenth of the width."""
    unet = randomised(unet_of(small(CASES[name].unet)))
    folder = saved(unet, tmp_path, CASES[name].scheduler)
    assert agrees(folder, unet, size=32) < 1e-5
    hparams = summary.read(folder).hparams
    assert hparams["sampler"]["steps"] is None
    assert hparams["sampler"]["variance"] == CASES[name].scheduler["variance_type"]
    assert hparams["schedule"]["T"] == 1000


@pytest.mark.parametrize("name", CASES)
def test_published_networks_have_their_parameter_counts(name):
    node, _ = diffusers_config.network(CASES[name].unet, null_class=False)
    with torch.device("meta"):
        from ddpm.runner.config.build import build

        count = sum(p.numel() for p in build(node, "model").parameters())
    assert count == CASES[name].parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpm-cifar10-32", "celeba-64", "ddpm-celebahq-256"])
def test_published_networks_agree_with_diffusers_at_full_size(name, tmp_path):
    """With weights of std 0.02 eps is of the order of 1, so 1e-5 is seven digits."""
    unet = randomised(unet_of(CASES[name].unet), std=0.02)
    assert sum(p.numel() for p in unet.parameters()) == CASES[name].parameters
    folder = saved(unet, tmp_path, CASES[name].scheduler)
    assert agrees(folder, unet, size=64) < 1e-5


CHOICES = {
    "attention_head_dim": [None, 2, 4, 8],
    "norm_num_groups": [2, 4],
    "norm_eps": [1e-5, 1e-6],
    "flip_sin_to_cos": [True, False],
    "freq_shift": [0, 1],
    "downsample_padding": [0, 1],
    "layers_per_block": [1, 2],
    "add_attention": [True, True, False],
    "num_class_embeds": [None, None, 5],
    "in_channels": [1, 3],
    "dropout": [0.0, 0.1],
    "act_fn": ["silu"] * 8 + ["swish"] * 2 + ["gelu"],
    "resnet_time_scale_shift": ["default"] * 16 + ["scale_shift"],
    "center_input_sample": [False] * 16 + [True],
    "downsample_type": ["conv"] * 16 + ["resnet"],
    "mid_block_scale_factor": [1] * 16 + [2],
    "time_embedding_type": ["positional"] * 16 + ["fourier"],
    "attn_norm_num_groups": [None] * 16 + [8],
    "time_embedding_dim": [None] * 16 + [24],
}


def drawn(seed):
    """A configuration of UNet2DModel."""
    draw = random.Random(seed)
    config = {key: draw.choice(values) for key, values in CHOICES.items()}
    levels = draw.choice([1, 2, 3])
    attended = [draw.random() < 0.4 for _ in range(levels)]
    up = attended[::-1] if draw.random() < 0.9 else [not on for on in attended]
    return config | {
        "sample_size": 8,
        "out_channels": config["in_channels"],
        "block_out_channels": [draw.choice([8, 16]) for _ in range(levels)],
        "down_block_types": ["AttnDownBlock2D" if on else "DownBlock2D" for on in attended],
        "up_block_types": ["AttnUpBlock2D" if on else "UpBlock2D" for on in up],
    }


@pytest.mark.slow
def test_twenty_networks_drawn_at_random_agree_or_are_refused(tmp_path):
    refused = 0
    for seed in range(20):
        torch.manual_seed(seed)
        config = drawn(seed)
        unet = randomised(diffusers.UNet2DModel(**config))
        folder = saved(unet, tmp_path / str(seed))
        message = ""
        try:
            assert agrees(folder, unet) < 1e-5, (seed, config)
        except InputError as error:
            message = str(error)
        if message:
            refused += 1
            assert message.startswith(f"checkpoint={folder}: unet/config.json: ")
            assert any(key in message for key in config), message
            assert "\n" not in message
    assert 4 <= refused <= 14


@pytest.mark.slow
def test_pickled_weights_with_old_attention_names_are_read(tmp_path):
    unet = randomised(unet_of(small(LSUN)))
    folder = saved(unet, tmp_path, safe_serialization=False)
    assert agrees(folder, unet, size=32) < 1e-5
    file = folder / "unet" / "diffusion_pytorch_model.bin"
    weights = torch.load(file, weights_only=True)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name in list(weights):
        for new, before in old.items():
            if f".{new}." in name:
                weights[name.replace(new, before)] = weights.pop(name)
    assert sum("proj_attn" in name for name in weights) == 12
    torch.save(weights, file)
    assert agrees(folder, unet, size=32) < 1e-5
    weights["mid_block.attentions.0.to_q.bias"] = torch.zeros(32)
    torch.save(weights, file)
    with pytest.raises(InputError, match=r"to_q\.bias twice, by its old and its new name"):
        checkpoint.find(folder)


def test_flat_layout_of_early_pipelines_is_read(tmp_path):
    """All files lie in the folder itself."""
    unet = randomised(unet_of(small(LSUN)))
    folder = saved(unet, tmp_path)
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()
    assert agrees(folder, unet, size=32) < 1e-5


def test_half_precision_weights_are_read(tmp_path):
    unet = randomised(unet_of(small(LSUN))).half()
    folder = saved(unet, tmp_path)
    assert agrees(folder, unet.float(), size=32) < 1e-5


SCHEDULERS = {
    "linear": {},
    "quadratic": {"beta_schedule": "scaled_linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    "listed": {"trained_betas": [0.01 + 0.001 * t for t in range(40)]},
    "zero terminal": {"rescale_betas_zero_snr": True, "prediction_type": "sample"},
    "unclipped": {"clip_sample": False},
    "wide": {"clip_sample_range": 2.0},
    "ddim": {"_class_name": "DDIMScheduler"},
}


@pytest.fixture(scope="module")
def lsun():
    return randomised(unet_of(small(LSUN)))


@pytest.mark.quick(4)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_process_equals_that_of_the_scheduler(name, lsun, tmp_path):
    settings = {"num_train_timesteps": 40} | SCHEDULERS[name]
    kind = settings.pop("_class_name", "DDPMScheduler")
    scheduler = getattr(diffusers, kind)(**settings)
    pipeline = "DDIMPipeline" if kind == "DDIMScheduler" else "DDPMPipeline"
    getattr(diffusers, pipeline)(lsun, scheduler).save_pretrained(tmp_path)
    _, diffusion, hparams, _ = load_network(tmp_path)
    torch.testing.assert_close(
        diffusion.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6
    )
    expected = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
    assert hparams["choices"]["objective"] == expected[scheduler.config.prediction_type]
    limit = scheduler.config.clip_sample_range
    assert diffusion.clip == ([-limit, limit] if scheduler.config.clip_sample else None)


# writing

EXPORTED = {
    "ddpm": ["sampler=ddpm"],
    "fixed small, on some steps": ["sampler=respaced", "sampler.steps=10"],
    "learned variance, v": ["objective=v", "objective.learned_variance=true", "sampler=ddpm"],
    "x_0, cosine": ["objective=x_0", "schedule=cosine", "sampler=ddpm"],
    "sigmoid": ["schedule=sigmoid", "sampler=ddpm"],
    "ddim": ["sampler=ddim", "sampler.steps=10", "sampler.spacing=trailing"],
}


def compare(folder, steps, deterministic=False):
    """The largest difference in grey levels between diffusers' pictures and ours, of one noise."""
    kind = diffusers.DDIMPipeline if deterministic else diffusers.DDPMPipeline
    theirs = kind.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    more = {"use_clipped_model_output": True} if deterministic else {}
    noise = torch.Generator().manual_seed(3)
    images = theirs(4, noise, num_inference_steps=steps, output_type="np", **more).images
    noise = torch.Generator().manual_seed(3)

    def randn(x):
        return torch.randn(x.shape, generator=noise)

    ours = Pipeline.from_checkpoint(folder, device="cpu")
    x_T = randn(torch.empty(4, *ours.shape))
    with torch.no_grad():
        *_, x_0 = ours.sampler(ours.denoiser(), x_T, randn)
    grey = ours.diffusion.codec.decode(x_0).permute(0, 2, 3, 1).numpy().astype(float)
    assert grey.std() > 10
    return abs(grey - (images * 255).round()).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["ddpm", *(pytest.param(k, marks=pytest.mark.slow) for k in EXPORTED if k != "ddpm")],
)
def test_exported_pipeline_draws_the_same_images_in_diffusers(kind, run, finished, tmp_path):
    finished(*WORDS, *EXPORTED[kind])
    out = go(run, *EXPORT, f"checkpoint={tmp_path / 'run'}", f"output_dir={tmp_path / 'given'}")
    assert "a pipeline of diffusers, ema of" in out
    folder = tmp_path / "given"
    ours = Pipeline.from_checkpoint(tmp_path / "run", device="cpu")
    assert torch.equal(ours.sample(3), Pipeline.from_checkpoint(folder, device="cpu").sample(3))
    theirs = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    x, t = torch.randn(2, *ours.shape), torch.tensor([0, 39])
    with torch.no_grad():
        assert (theirs(x, t).sample - ours.model(x, t)).abs().max() < 1e-5
    steps = 40 if ours.sampler.steps is None else ours.sampler.steps
    assert compare(folder, steps, deterministic=isinstance(ours.sampler, DDIM)) <= 1


@pytest.mark.slow
def test_any_size_augmentation_and_average_can_be_exported(run, tmp_path):
    words = ["data.image_size=[16,8]", "augment=edm", "augment.probability=0.5", "ema=power"]
    words += ["sampler=ddpm"]
    go(run, *WORDS, *words, f"output_dir={tmp_path / 'run'}")
    words = [f"checkpoint={tmp_path / 'run'}", "job.weights=ema:0.1", "output_dir=given"]
    go(run, *EXPORT, *words)
    ours = Pipeline.from_checkpoint(tmp_path / "run", device="cpu", weights="ema:0.1")
    theirs, loading = diffusers.UNet2DModel.from_pretrained(
        tmp_path / "given" / "unet", output_loading_info=True
    )
    assert not loading["unexpected_keys"]
    assert not loading["missing_keys"]
    x, t = torch.randn(2, 1, 16, 8), torch.tensor([0, 39])
    with torch.no_grad():
        assert (theirs(x, t).sample - ours.model(x, t)).abs().max() < 1e-5
    again = Pipeline.from_checkpoint(tmp_path / "given", device="cpu")
    assert torch.equal(ours.sample(2), again.sample(2))
    card = (tmp_path / "given" / "README.md").read_text()
    assert "| data | digits, 8x16 pixels, 1 channel |" in card
    assert "| weights | averaged over the steps, with a length of 0.1 |" in card
    code = card.partition("```python\n")[2].partition("```")[0]
    scope = {}
    exec(code.replace("<this folder>", str(tmp_path / "given")), scope)
    assert scope["images"][0].size == (8, 16)


def test_conditional_network_is_exported_and_imported_again(run, tmp_path):
    words = ["data.conditional=true", "guidance=classifier_free", "guidance.scale=2"]
    words += ["sampler.steps=2"]
    go(run, *WORDS, *words, f"output_dir={tmp_path / 'run'}")
    go(run, *EXPORT, f"checkpoint={tmp_path / 'run'}", "output_dir=given")
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "given" / "unet")
    assert theirs.config.num_class_embeds == 11  # the last one is no label
    ours = Pipeline.from_checkpoint(tmp_path / "run", device="cpu")
    x, t = torch.randn(3, *ours.shape), torch.tensor([0, 5, 39])
    for labels in (torch.tensor([3, 0, 9]), torch.tensor([10, 10, 10])):
        with torch.no_grad():
            eps = ours.model(x, t, None if labels[0] == 10 else labels)
            assert (theirs(x, t, labels).sample - eps).abs().max() < 1e-5
    again = Pipeline.from_checkpoint("given", device="cpu")
    assert torch.equal(ours.sample(4, labels=[3, 7]), again.sample(4, labels=[3, 7]))
    card = (tmp_path / "given" / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    scope = {}
    exec(code.replace("<this folder>", str(tmp_path / "given")), scope)  # our own words
    assert scope["x"].shape == (10, *ours.shape)


def test_code_of_the_model_card_runs(run, finished, tmp_path):
    folder = exported(run, finished, tmp_path)
    card = (folder / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    scope = {}
    exec(code.replace("<this folder>", str(folder)), scope)
    assert len(scope["images"]) == 16


def exported(run, finished, tmp_path):
    finished(*WORDS, "sampler=ddpm")
    go(run, *EXPORT, f"checkpoint={tmp_path / 'run'}", f"output_dir={tmp_path / 'given'}")
    return tmp_path / "given"


@pytest.mark.slow
def test_exported_import_has_the_original_tensors(run, tmp_path):
    unet = randomised(unet_of(small(LSUN) | {"num_class_embeds": 5}))
    folder = saved(unet, tmp_path / "theirs")
    go(run, *EXPORT, f"checkpoint={folder}", f"output_dir={tmp_path / 'ours'}")
    theirs, ours = (
        diffusers.UNet2DModel.from_pretrained(path / "unet") for path in (folder, tmp_path / "ours")
    )
    one, other = theirs.state_dict(), ours.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for key in ("block_out_channels", "attention_head_dim", "freq_shift", "num_class_embeds"):
        assert ours.config[key] == theirs.config[key], key
    words = ["job.labels=[1,4]", "job.num_samples=2", "sampler=ddim", "sampler.steps=2"]
    for name in ("theirs", "ours"):
        go(run, *SAMPLE, *words, f"checkpoint={tmp_path / name}", f"output_dir=drawn-{name}")
    assert torch.equal(*(pngs(tmp_path / f"drawn-{name}") for name in ("theirs", "ours")))


@pytest.mark.slow
def test_unsupported_uses_of_an_imported_network_are_refused(run, tmp_path):
    folder = saved(randomised(unet_of(small(LSUN) | {"num_class_embeds": 5})), tmp_path / "a")
    with pytest.raises(InputError, match=r"null_class=false: this network needs a label"):
        Pipeline.from_checkpoint(folder, sampler=DDPM(steps=2, variance="auto")).sample(1)
    for words, expected in {
        ("guidance=classifier_free",): "guidance=classifier_free: the network has no class",
        ("data=mnist", "sampler=ddim"): "data.channels=1: the pictures of checkpoint=",
        ("model.groups=2",): "model.groups=2: checkpoint=",
    }.items():
        status, _, err = run(*SAMPLE, f"checkpoint={folder}", *words)
        assert status == 2
        assert expected in err


def test_scores_can_be_against_any_data_of_its_shape(run, tmp_path):
    config = small(LSUN) | {"in_channels": 1, "out_channels": 1, "sample_size": 16}
    config |= {key: config[key][:2] for key in ("block_out_channels", "down_block_types")}
    config["up_block_types"] = ["UpBlock2D", "UpBlock2D"]
    folder = saved(randomised(unet_of(config)), tmp_path / "theirs")
    words = ["sampler=ddim", "sampler.steps=2", "features=pixels", "metric=fd", "hardware=cpu"]
    words += ["job.num_samples=32", "data.image_size=16", "tracker=local"]
    go(run, "job=evaluate", f"checkpoint={folder}", "data=digits", *words, "output_dir=scored")
    row = json.loads((tmp_path / "scored" / "scores.jsonl").read_text().splitlines()[0])
    assert row["ruler"]["reference"]["data"] == "digits"


def test_a_network_that_diffusers_does_not_have_is_refused(run, tiny):
    status, _, err = run(*EXPORT, f"checkpoint={tiny}", "output_dir=given")
    assert (status, err.count("\n")) == (2, 1)
    assert "model=convnet: diffusers has no such network" in err
    assert "job.format=safetensors exports every network" in err
    assert not (tiny.parent / "given").exists()


@pytest.mark.parametrize(("num_heads", "attended", "head_dim"), [(1, [8], None), (2, [4], 8)])
def test_attention_heads_are_translated_to_attention_head_dim(num_heads, attended, head_dim):
    model = diffusers_config.network(small(CIFAR10), null_class=False)[0]
    model |= {"widths": [8, 8, 16], "image_size": 16, "num_heads": num_heads}
    model |= {"attention_resolutions": attended}
    assert diffusers_config.unet(model)["attention_head_dim"] == head_dim
    with pytest.raises(Refused, match=r"model\.num_heads=4: .* widths of 8 or 16"):
        diffusers_config.unet(model | {"num_heads": 4, "attention_resolutions": [16]})


def test_existing_folder_is_not_overwritten(run, finished, tmp_path):
    folder = exported(run, finished, tmp_path)
    before = (folder / "model_index.json").read_bytes()
    for form in ("diffusers", "safetensors"):
        words = ["job=export", f"job.format={form}", "hardware=cpu"]
        status, _, err = run(*words, f"checkpoint={tmp_path / 'run'}", f"output_dir={folder}")
        assert status == 2
        assert "holds an export already" in err
    assert (folder / "model_index.json").read_bytes() == before


# folders of strangers


@pytest.fixture(scope="module")
def foreign_folder(tmp_path_factory):
    return saved(randomised(unet_of(small(LSUN))), tmp_path_factory.mktemp("stranger"))


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
CHANGED = [  # file, key, value, part of the message
    (UNET, "_class_name", "UNet2DConditionModel", "_class_name=UNet2DConditionModel"),
    (UNET, "_class_name", None, "_class_name=None"),
    (UNET, "sample_size", 10**9, "sample_size=1000000000"),
    (UNET, "sample_size", [32, 48, 3], "sample_size=[32, 48, 3]"),
    (UNET, "sample_size", None, "sample_size=None"),
    (UNET, "block_out_channels", [2**40], "block_out_channels"),
    (UNET, "block_out_channels", [8] * 10_000, "block_out_channels"),
    (UNET, "block_out_channels", "128", "block_out_channels=128"),
    (UNET, "layers_per_block", 10**9, "layers_per_block=1000000000"),
    (UNET, "layers_per_block", True, "layers_per_block=True"),
    (UNET, "num_class_embeds", 10**12, "num_class_embeds=1000000000000"),
    (UNET, "norm_num_groups", 0, "norm_num_groups=0"),
    (UNET, "norm_eps", "nan", "norm_eps=nan"),
    (UNET, "dropout", -1, "dropout=-1"),
    (UNET, "act_fn", "os.system", "act_fn=os.system"),
    (UNET, "act_fn", ["silu"], "act_fn=['silu']"),
    (UNET, "act_fn", "${oc.env:HOME}", "refers to what is not in it"),
    (UNET, "down_block_types", ["CrossAttnDownBlock2D"] * 6, "down_block_types"),
    (UNET, "up_block_types", [], "up_block_types=[]"),
    (UNET, "mid_block_type", None, "mid_block_type=None"),
    (UNET, "attention_head_dim", "a\x1b[2Jb", "attention_head_dim=a\\x1b[2Jb"),
    (SCHEDULER, "_class_name", "ScoreSdeVeScheduler", "_class_name=ScoreSdeVeScheduler"),
    (SCHEDULER, "num_train_timesteps", 10**9, "num_train_timesteps=1000000000"),
    (SCHEDULER, "beta_schedule", "sigmoid", "beta_schedule=sigmoid"),
    (SCHEDULER, "prediction_type", "flow", "prediction_type=flow"),
    (SCHEDULER, "trained_betas", [0.1], "trained_betas"),
    (SCHEDULER, "trained_betas", ["x"] * 1000, "trained_betas=x"),
    (SCHEDULER, "thresholding", True, "thresholding=true"),
    (SCHEDULER, "variance_type", "learned_range", "out_channels=3"),
    (SCHEDULER, "variance_type", "fixed_large_log", "variance_type=fixed_large_log"),
    ("model_index.json", "unet", None, "names no unet"),
]


def change(folder, file, **entries):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("file", "key", "value", "expected"),
    CHANGED,
    ids=[f"{c[1]}={str(c[2])[:20]!a}" for c in CHANGED],
)
def test_unsupported_config_values_are_refused(
    file, key, value, expected, foreign_folder, tmp_path
):
    folder = tmp_path / "stranger"
    shutil.copytree(foreign_folder, folder)
    change(folder, file, **{key: value})
    with watched(), pytest.raises(InputError) as error:
        load_network(folder)
    message = str(error.value)
    assert message.startswith(f"checkpoint={folder}: {file}: ")
    assert expected in message
    assert message.isprintable()
    assert len(message) < len(str(folder)) + 500


def replace(folder, file, content):
    (folder / file).write_bytes(content)


BIN = "unet/diffusion_pytorch_model.bin"
FILES = {
    "no unet": lambda f: shutil.rmtree(f / "unet"),
    "no scheduler": lambda f: shutil.rmtree(f / "scheduler"),
    "no weights": lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(),
    "not JSON": lambda f: replace(f, UNET, b"{'a': 1}"),
    "a list": lambda f: replace(f, UNET, b"[]"),
    "deep": lambda f: replace(f, UNET, b'{"a":' * 100_000),
    "a key twice": lambda f: replace(f, SCHEDULER, b'{"a": 1, "a": 2}'),
    "large": lambda f: replace(f, UNET, b" " * (5 * 2**20)),
    "cut": lambda f: replace(
        f,
        "unet/diffusion_pytorch_model.safetensors",
        (f / "unet/diffusion_pytorch_model.safetensors").read_bytes()[:-100],
    ),
    "a pointer of git-lfs": lambda f: replace(
        f, "unet/diffusion_pytorch_model.safetensors", b"version https://git-lfs\n" * 9
    ),
    "another network": lambda f: change(f, UNET, layers_per_block=1),
    "a larger one": lambda f: change(f, UNET, block_out_channels=[2**16] * 6),
    "our file, of others": lambda f: replace(f, "hydra-ddpm.json", b"{}"),
}


@pytest.mark.parametrize("what", FILES)
def test_invalid_pipeline_folders_are_refused(what, foreign_folder, tmp_path):
    folder = tmp_path / "stranger"
    shutil.copytree(foreign_folder, folder)
    FILES[what](folder)
    with watched(), pytest.raises(InputError) as error:
        load_network(folder)
    assert str(error.value).startswith(f"checkpoint={folder}")
    assert "\n" not in str(error.value)


class Payload:
    def __reduce__(self):
        return print, ("gotcha",)


@pytest.mark.parametrize(
    "content", [{"a": Payload()}, [torch.zeros(1)], {"a": 3}, {"a": {"b": torch.zeros(1)}}]
)
def test_pickles_other_than_weights_are_refused(content, foreign_folder, tmp_path, capsys):
    folder = tmp_path / "stranger"
    shutil.copytree(foreign_folder, folder)
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save(content, folder / BIN)
    with watched(), pytest.raises(InputError, match=r"unet/diffusion_pytorch_model\.bin: "):
        load_network(folder)
    assert "gotcha" not in capsys.readouterr().out


def test_a_hostile_class_in_our_own_file_is_not_built(run, finished, tmp_path):
    folder = exported(run, finished, tmp_path)
    path = folder / "hydra-ddpm.json"
    about = json.loads(path.read_text())
    for part in ("sampler", "data", "guidance"):
        changed = json.loads(path.read_text())
        changed["hparams"][part]["_target_"] = "os.mkdir"
        path.write_text(json.dumps(changed))
        status, _, err = run(*SAMPLE, f"checkpoint={folder}")
        assert status == 2
        assert "_target_=os.mkdir" in err
        path.write_text(json.dumps(about))
    about["hparams"]["data"]["image_size"] = 32
    path.write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"hydra-ddpm\.json: its data\.image_size=32"):
        load_network(folder)


def test_betas_are_exported_by_name_where_possible():
    for name, scheduler in {
        "linear": diffusers.DDPMScheduler(),
        "scaled_linear": diffusers.DDPMScheduler(beta_schedule="scaled_linear"),
        "squaredcos_cap_v2": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "trained": diffusers.DDPMScheduler(beta_schedule="sigmoid"),
    }.items():
        named = diffusers_folder.name_betas(scheduler.betas.tolist())
        again = diffusers.DDPMScheduler(**named)
        torch.testing.assert_close(again.betas, scheduler.betas, rtol=1e-5, atol=1e-9)
        assert (named["trained_betas"] is None) == (name != "trained")
        assert name in (named["beta_schedule"], "trained")


def test_unknown_objective_is_refused():
    hparams = {"choices": {"objective": "flow"}, "diffusion": {}}
    with pytest.raises(Refused, match="objective=flow"):
        diffusers_config.scheduler(hparams, diffusers_folder.name_betas([0.1, 0.2]))


def test_a_pipeline_fills_in_and_mixes_pictures_without_a_data_set(run, tmp_path):
    """RePaint keeps the known half. No folder of images is needed: those given are framed only."""
    folder = saved(randomised(unet_of(small(CIFAR10))), tmp_path / "pipe")
    pixels = random_pixels(32, 32, 3)
    save(tmp_path / "picture.png", pixels)
    words = [f"checkpoint={folder}", "sampler=ddim", "sampler.steps=2", *SAMPLE[1:]]
    painting = ["job.image=picture.png", "job.mask=left", "job.resamples=1", "job.num_samples=1"]
    go(run, "job=inpaint", *words, *painting, "output_dir=filled")
    filled = pngs(tmp_path / "filled")[0]
    known = torch.from_numpy(pixels).permute(2, 0, 1)
    assert torch.equal(filled[..., 16:], known[..., 16:])
    assert not torch.equal(filled[..., :16], known[..., :16])
    status, _, err = run("job=interpolate", *words, "output_dir=none")
    assert (status, err.partition(":")[0]) == (2, "data.root")  # these are of a data set


@pytest.mark.slow
def test_figures_of_a_pipeline(run, tmp_path):
    folder = saved(randomised(unet_of(small(CIFAR10))), tmp_path / "pipe")
    for n in range(4):
        save(tmp_path / "pictures" / f"{n}.png", random_pixels(32, 32, 3))
    words = [f"checkpoint={folder}", "data.root=pictures", "job.num_images=4", *SAMPLE[1:]]
    out = go(run, "job=explain", *words, "sampler=ddim", "sampler.steps=2", "output_dir=e")
    assert [line.split()[1] for line in out.splitlines() if line[:7] == "without"] == ["guidance:"]
