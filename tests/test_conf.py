"""Every file under conf/: it composes, what it names can be built, and all parts work together."""

import functools
import importlib
import inspect
import itertools
import re

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from support.base import ROOT
from support.sharing import curve_of_a_loss

from ddpm.runner import roles
from ddpm.runner.config import derive, rules
from ddpm.runner.config.build import build, check_targets
from ddpm.runner.config.plan import Mode, Output, Plan
from ddpm.runner.execution.run import Run
from ddpm.runner.runs import run_dir
from ddpm.runner.runs.old_names import FORMER_VALUES
from ddpm.trackers import local

CONF = ROOT / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in sorted(CONF.iterdir())
    if folder.is_dir()
}
FOLLOWING = ("job_data", "job_model_data_optimizer", "model_data")  # chosen by the other choices
NO_PARTS = ("hydra", "job", "experiment", "team", "metric", *FOLLOWING)
PARTS = [group for group in GROUPS if group not in NO_PARTS]
OPTIONS = [(group, option) for group in PARTS for option in GROUPS[group]]
# What a job or an option cannot do without.
NEEDED = {
    "export": ["checkpoint=run"],
    "average": ["checkpoint=run", "job.sigma_rel=[0.07]"],
    "sample": ["checkpoint=run"],
    "interpolate": ["checkpoint=run"],
    "inpaint": ["checkpoint=run", "job.image=a.png", "job.mask=left"],
    "play": ["checkpoint=run"],
    "classifier": ["guidance.classifier=run"],
    "autoguidance": ["guidance.weak=run"],
}
MEASURING = ("features", "metric")  # groups that score samples
ONLY_IN = {"ema": ["train", "train_classifier"]} | {key: ["evaluate"] for key in MEASURING}
NETWORKS = [model for model in GROUPS["model"] if model != "classifier"]

# So small that a step takes milliseconds.
SMALL = {
    "convnet": ["model.width=4"],
    "unet": ["model.widths=[4,8]", "model.groups=2", "model.num_heads=1"],
    "resunet": ["model.widths=[4,8]", "model.groups=2", "model.num_res_blocks=1"],
    "dit": ["model.depth=1", "model.width=8", "model.num_heads=2"],
    "jit": ["model.depth=1", "model.width=8", "model.num_heads=2"],
    **{sampler: ["sampler.steps=2"] for sampler in GROUPS["sampler"] if sampler != "ddpm"},
    **{schedule: ["schedule.T=40"] for schedule in GROUPS["schedule"]},
    "listed": ["schedule.T=40", f"schedule.betas={[0.05] * 40}"],
}
# Written by Python where the job or the tracker is called, not by a file.
AT_THE_CALL = {
    "job": {"run", "fabric"},
    "optimizer": {"params"},
    "ema": {"model", "decay", "ramp"},
    "tracker": {"run_dir", "run", "hparams", "start_step"},
}


@pytest.fixture(autouse=True, scope="module")
def hydra():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture(autouse=True)
def one_curve(monkeypatch):
    curve = curve_of_a_loss()
    monkeypatch.setattr(local, "loss_curve", lambda *_: curve)


@functools.cache
def composed(*overrides):
    return compose("config", overrides=list(overrides))


def needed(job, group, option):
    return [*NEEDED.get(job, []), *(NEEDED.get(option, []) if group == "guidance" else [])]


def plain(cfg):
    return OmegaConf.to_container(cfg, resolve=True)


def located(target):
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def parameters(target):
    """A target's parameters; those that a subclass hands on belong to it too."""
    found = {}
    thing = located(target)
    for owner in inspect.getmro(thing) if inspect.isclass(thing) else [thing]:
        function = owner.__dict__.get("__init__") if inspect.isclass(owner) else owner
        if function is None:
            continue
        own = inspect.signature(function).parameters.values()
        found |= {p.name: p for p in own if p.name != "self" and p.name not in found}
        if not any(p.kind == p.VAR_KEYWORD for p in own):
            break
    return {n: p for n, p in found.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def flat(node, prefix=""):
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from flat(value, f"{key}.")
        else:
            yield key


def loaded(path):
    """A file as Hydra reads it: to plain YAML, 2e-4 is a string."""
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)


def body(path):
    return {key: value for key, value in loaded(path).items() if key != "defaults"}


# composing


LOOKING = (
    "report",
    "status",
    "compare",
    "watch",
)  # at runs that are there
OTHERS = itertools.cycle([job for job in GROUPS["job"] if job not in ("train", *LOOKING)])


@pytest.mark.quick(20)
@pytest.mark.parametrize(
    ("group", "option", "job"),
    [(*pair, job) for pair in OPTIONS for job in ONLY_IN.get(pair[0]) or ["train", next(OTHERS)]],
)
def test_every_option_composes_with_the_jobs(group, option, job):
    cfg = composed(f"job={job}", f"{group}={option}", *needed(job, group, option))
    assert OmegaConf.missing_keys(cfg) == set()
    config = plain(cfg)
    check_targets(config)
    rules.check(config, {})
    assert config["job"]["_target_"].startswith(f"ddpm.jobs.{job}.")


def test_trackers_compose_as_a_list():
    assert set(composed("tracker=[wandb,tensorboard]").tracker) == {"wandb", "tensorboard"}
    assert set(composed("tracker=[local,wandb]").tracker) == {"wandb"}
    assert plain(composed("tracker=local"))["tracker"] == {}


@pytest.mark.quick(6)
@pytest.mark.parametrize(("data", "model"), list(itertools.product(GROUPS["data"], NETWORKS)))
def test_every_network_takes_the_images_of_every_data_set(data, model):
    cfg = composed(f"data={data}", f"model={model}")
    with torch.device("meta"):
        net = build(cfg.model)
    channels, size = cfg.data.channels, cfg.data.image_size
    x_t = torch.empty(2, channels, size, size, device="meta")
    t = torch.empty(2, dtype=torch.int64, device="meta")
    assert net(x_t, t).shape == x_t.shape


@pytest.mark.quick(5)
@pytest.mark.parametrize(("group", "option"), [(g, o) for g in FOLLOWING for o in GROUPS[g]])
def test_preset_files_are_named_after_the_options_they_follow(group, option):
    parts = {
        "job_data": ("job", "data"),
        "job_model_data_optimizer": ("job", "model", "data", "optimizer"),
        "model_data": ("model", "data"),
    }[group]
    names = {"_".join(options): options for options in itertools.product(*map(GROUPS.get, parts))}
    chosen = [f"{part}={o}" for part, o in zip(parts, names[option], strict=True)]
    config = plain(composed(*chosen))
    without = plain(composed(*chosen, f"~{group}"))
    for key in flat(body(CONF / group / f"{option}.yaml")):
        assert look_up(config, key) == look_up(body(CONF / group / f"{option}.yaml"), key)
        assert key in set(flat(without)), f"{group}/{option}.yaml: nobody reads {key}"


def look_up(config, key):
    for name in key.split("."):
        config = config[name]
    return config


# experiments


@pytest.mark.quick(3)
@pytest.mark.parametrize("experiment", GROUPS["experiment"])
def test_an_experiment_composes_and_its_parts_can_be_built(experiment):
    path = CONF / "experiment" / f"{experiment}.yaml"
    root = ["data.root=pictures"] if "/data: folder" in path.read_text() else []
    cfg = composed(f"experiment={experiment}", *root)
    config = plain(cfg)
    check_targets(config)
    rules.check(config, {})
    with torch.device("meta"):
        net = build(cfg.model)
    size, channels = cfg.data.image_size, cfg.data.channels
    x_t = torch.empty(1, channels, size, size, device="meta")
    assert net(x_t, torch.zeros(1, dtype=torch.int64, device="meta")).shape == x_t.shape
    for part in ("schedule", "diffusion", "sampler", "data", "optimizer", "tracker"):
        build(cfg[part], part)

    overridden = [entry for entries in loaded(path)["defaults"] for entry in entries.items()]
    choices = [f"{key.removeprefix('override /')}={option}" for key, option in overridden]
    without = set(flat(plain(composed(*choices))))
    for key in flat(body(path)):
        assert key in without, f"{path.name}: nobody reads {key}"
        assert look_up(config, key) == look_up(body(path), key)
    assert f"experiment={experiment}" in path.read_text(), "the command belongs at its head"


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["experiment=ho2020_cifar10"], 35_746_307),
        (["experiment=celeba64"], 78_700_803),
        (["experiment=pets128"], 71_436_803),
        (["experiment=folder256"], 113_673_219),
        (["experiment=mnist"], 35_741_697),
        (["model=resunet", "data=cifar10"], 35_746_307),
        (
            [
                *("model=resunet", "data=folder", "data.image_size=256"),
                *("model.widths=[128,128,256,256,512,512]", "model.attention_resolutions=[16]"),
            ],
            113_673_219,
        ),
        (["model=convnet", "data=cifar10", "model.time_conditioning=false"], 40_451),
    ],
)
def test_parameter_counts(overrides, count):
    with torch.device("meta"):
        net = build(composed(*overrides).model)
    assert sum(p.numel() for p in net.parameters()) == count


def test_experiments_hold_the_published_settings():
    cifar10 = plain(composed("experiment=ho2020_cifar10"))
    assert cifar10["optimizer"]["_target_"] == "torch.optim.Adam"
    assert cifar10["optimizer"]["lr"] == 2e-4
    assert cifar10["model"]["dropout"] == 0.1
    assert cifar10["data"]["flip"] is True
    job = cifar10["job"]
    assert (job["batch_size"], job["ema_decay"], job["clip_grad_norm"]) == (128, 0.9999, 1.0)
    assert (job["max_steps"], job["warmup_steps"]) == (800_000, 5000)
    unet = plain(composed("experiment=attention_unet64"))
    assert unet["optimizer"]["_target_"] == "torch.optim.AdamW"
    assert unet["optimizer"]["lr"] == 3e-4
    assert (unet["data"]["channels"], unet["data"]["image_size"]) == (3, 64)
    mnist = plain(composed("experiment=mnist"))
    assert (mnist["data"]["image_size"], mnist["data"]["resize_mode"]) == (32, "pad")
    assert mnist["optimizer"]["lr"] == 2e-4
    pets = plain(composed("experiment=pets64"))
    assert pets["model"]["widths"] == [128, 256, 512, 512, 512]
    assert pets["model"]["attention_resolutions"] == [32, 16, 8]


@pytest.mark.parametrize(
    ("whole", "short"),
    [
        (["model=resunet", "data=mnist"], ["experiment=debug", "model=resunet", "data=mnist"]),
        (["experiment=ho2020_cifar10"], ["experiment=[ho2020_cifar10,debug]"]),
        ([], ["experiment=debug"]),
    ],
)
def test_experiment_debug_changes_only_how_much_is_done(whole, short):
    before, after = plain(composed("tracker=local", *whole)), plain(composed(*short))
    changed = {k for k in flat(before) if look_up(before, k) != look_up(after, k)} - {"experiment"}
    assert {"job.max_steps", "job.log_every", "job.sample_every", "sampler.steps"} <= changed
    kept = (roles.Role.PROCESS, roles.Role.TRAINING, roles.Role.MACHINE)
    assert not {key for key in changed if roles.role_of(key) in kept}
    assert before["model"] == after["model"]
    assert before["data"] == after["data"]
    longer = plain(composed(*short, "job.max_steps=50", "tracker=tensorboard", "sampler.steps=9"))
    assert (longer["job"]["max_steps"], longer["sampler"]["steps"]) == (50, 9)
    assert set(longer["tracker"]) == {"tensorboard"}


# defaults


def test_the_default_run():
    config = plain(composed())
    targets = {name: config[name]["_target_"].rpartition(".")[2] for name in ("model", "data")}
    assert targets == {"model": "UNet", "data": "Digits"}
    assert config["data"]["image_size"] == 16
    assert set(config["tracker"]) == {"wandb"}
    assert config["optimizer"]["_target_"] == "torch.optim.Adam"
    assert config["output_dir"] is config["resume"] is None


@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        ("schedule=linear", "schedule.T", 1000),
        ("schedule=linear", "schedule.beta_start", 1e-4),
        ("schedule=linear", "schedule.beta_end", 0.02),
        ("schedule=cosine", "schedule.T", 1000),
        ("schedule=cosine", "schedule.s", 0.008),
        ("optimizer=adam", "optimizer.lr", 2e-4),
        ("optimizer=adamw", "optimizer.lr", 3e-4),
        ("model=convnet", "model.width", 64),
        ("model=convnet", "model.time_conditioning", True),
        ("job=train", "job.ema_decay", 0.9999),
        ("sampler=ddim", "sampler.eta", 0.0),
    ],
)
def test_documented_defaults(option, key, value):
    found = look_up(plain(composed(option, "data=cifar10")), key)
    assert (found, type(found)) == (value, type(value))


def test_betas_of_the_default_schedules():
    linear, cosine = (build(composed(f"schedule={n}").schedule) for n in ("linear", "cosine"))
    assert linear.shape == cosine.shape == (1000,)
    assert (linear[0].item(), linear[-1].item()) == pytest.approx((1e-4, 0.02))
    assert cosine.max() == 0.999


def test_data_comes_from_the_environment_or_stands_beside_the_checkout(monkeypatch):
    monkeypatch.setenv("DDPM_DATA", "elsewhere")
    assert compose("config").data.data_dir == "elsewhere"
    assert compose("config", overrides=["data_dir=here"]).data.data_dir == "here"
    monkeypatch.delenv("DDPM_DATA")
    assert compose("config").data.data_dir == "data"


@pytest.mark.quick(1)
@pytest.mark.parametrize("data", ["cifar10", "digits", "fashion_mnist", "mnist", "pets"])
def test_every_data_set_with_classes_has_a_classifier_and_conditional_networks(data):
    for model in NETWORKS:
        config = plain(composed(f"data={data}", "data.conditional=true", f"model={model}"))
        derive.model_keys(config)
        assert config["model"]["num_classes"] == config["data"]["num_classes"]
        with torch.device("meta"):
            net = build(config["model"])
            x_t = torch.empty(2, *(config["data"][k] for k in ("channels", *["image_size"] * 2)))
            t = label = torch.empty(2, dtype=torch.int64)
            assert net(x_t, t, label).shape == x_t.shape
    config = plain(composed("job=train_classifier", f"data={data}"))
    derive.model_keys(config)
    with torch.device("meta"):
        logits = build(config["model"])(x_t, t)
    assert logits.shape == (2, config["data"]["num_classes"])


ALONE = [o for o in GROUPS["guidance"] if o not in ("classifier", "autoguidance")]


@pytest.mark.parametrize("option", ALONE)
def test_guidance_is_built_alone(option):
    build(composed(f"guidance={option}").guidance, "guidance")


# building and stepping

# test_gaussian.py has all schedules, objectives and samplers together, with figures.
VARIED = ("schedule", "sampler", "model", "objective", "weighting", "timesteps", "optimizer")
VARIED += ("guidance", "ema", "augment")
# What planning derives for the network.
DERIVED = {
    ("guidance", "classifier_free"): ["data.conditional=true", "model.num_classes=10"],
    ("augment", "edm"): ["model.augment_dim=15"],
}


def pairwise(options):
    """Rows of one option of each group, few of them, such that any two options meet in one."""
    left = {
        frozenset([(group, option), (other, its)])
        for group, other in itertools.combinations(options, 2)
        for option, its in itertools.product(options[group], options[other])
    }
    while left:
        row = dict(sorted(min(left, key=sorted)))
        for group in (group for group in options if group not in row):
            met = {
                o: sum(frozenset([(group, o), pair]) in left for pair in row.items())
                for o in options[group]
            }
            row[group] = max(options[group], key=met.get)
        left -= set(map(frozenset, itertools.combinations(row.items(), 2)))
        yield {group: row[group] for group in options}


CHOICES = {group: NETWORKS if group == "model" else GROUPS[group] for group in VARIED}
COMBINATIONS = list(pairwise(CHOICES))


def test_any_two_options_meet():
    met = {pair for row in COMBINATIONS for pair in itertools.combinations(row.items(), 2)}
    for group, other in itertools.combinations(VARIED, 2):
        for option, its in itertools.product(CHOICES[group], CHOICES[other]):
            assert ((group, option), (other, its)) in met
    assert len(COMBINATIONS) < 100


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def trained(folder, choices, data_dir, *words):
    """A run of one step on digits, by the job itself: the job, the run, the weights before."""
    cfg = composed(
        *(f"{group}={option}" for group, option in choices.items()),
        *(override for option in choices.values() for override in SMALL.get(option, [])),
        *("hardware=cpu", "hardware.precision=32-true", "data=digits", "job.max_steps=1"),
        *("job.batch_size=4", "job.log_every=1", f"data_dir={data_dir}", *words),
        *(["schedule.end=0.999"] if choices["schedule"] == "rectified" else []),  # for eps
    )
    job = build(cfg.job, "job")
    before = [p.detach().clone() for p in job.net.parameters()]
    fabric = build(cfg.hardware)
    hparams = plain(cfg) | {"run_id": "0", "overrides": []}
    hparams["choices"] = {"job": "train"} | choices
    planned = Plan(
        config=hparams,
        hparams=hparams,
        output=Output(folder, Mode.NEW),
        trains=True,
        changes=[],
        checkpoint=None,
        name="step",
        group=None,
        tags=[],
    )
    run = Run(planned, fabric, {})
    job(run=run, fabric=fabric)
    return job, run, before


@pytest.fixture(scope="module")
def guides(tmp_path_factory, data_dir):
    """The networks that guidance=classifier and autoguidance need, by the option."""
    home = tmp_path_factory.mktemp("guides")
    classifier = {"job": "train_classifier", "model": "classifier", "schedule": "linear"}
    words = ["model.widths=[8,8]", "model.groups=2", "model.num_heads=1", "model.num_classes=10"]
    trained(home / "classifier", classifier, data_dir, *words)
    trained(home / "weak", {"model": "convnet", "schedule": "cosine"}, data_dir)
    return {
        "classifier": [f"guidance.classifier={home / 'classifier'}"],
        "autoguidance": [f"guidance.weak={home / 'weak'}"],
    }


@pytest.mark.quick(3)
@pytest.mark.parametrize("choices", COMBINATIONS, ids=lambda choices: "-".join(choices.values()))
def test_any_two_options_take_a_step_and_draw_a_picture(choices, data_dir, guides, tmp_path):
    words = [word for choice in choices.items() for word in DERIVED.get(choice, [])]
    words += guides.get(choices["guidance"], [])
    job, run, before = trained(tmp_path / "run", choices, data_dir, "job.num_samples=1", *words)
    net = job.net
    assert run_dir.read_status(tmp_path / "run").items() >= {"state": "done", "step": 1}.items()
    largest = max(1, job.diffusion.loss_weights.max().item())
    assert 0 < run.metrics["train/loss"] < 10 * largest
    assert run.metrics["train/lr"] == pytest.approx(
        run.plan.config["optimizer"]["lr"] / run.plan.config["job"]["warmup_steps"]
    )
    moved = [not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True)]
    assert any(moved)
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("option", [o for o in GROUPS["hardware"] if o != "gpu"])
def test_hardware_is_there(option):
    assert build(composed(f"hardware={option}", "hardware.devices=1").hardware).world_size == 1


@pytest.mark.parametrize("option", GROUPS["data"])
def test_data_sets_touch_no_file_when_they_are_built(option, tmp_path):
    # Where pictures are has no default: it is the one thing that must be given.
    keys = body(CONF / "data" / f"{option}.yaml")
    given = [f"data.{key}=pictures" for key in ("root", "path", "shards") if key in keys]
    build(composed(f"data={option}", f"data_dir={tmp_path}", *given).data)
    assert list(tmp_path.iterdir()) == []


# keys


def nodes(node, path=()):
    """Every node of a file that names a target, with where it stands."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for name, value in node.items():
            yield from nodes(value, (*path, name))


# What Hydra builds hands its keys on.
PLUGINS = {
    "hydra_plugins.ddpm_sweeps.Slots": "ddpm.runner.sweeps.launchers.devices.find_slots",
    "hydra_plugins.ddpm_sweeps.Slurm": "ddpm.runner.sweeps.launchers.slurm.Slurm",
    "hydra_plugins.ddpm_sweeps.Optuna": "ddpm.runner.sweeps.search.optuna_search.search",
}

# Parameters for code that builds a process itself.
IN_PYTHON = {"ddpm.diffusion.GaussianDiffusion": {"codec", "clip"}}

# Defaults of Python that a file replaces: by the data's, or as another option of the same class.
IN_ONE_LINE = {f"model={name}.channels": 3 for name in GROUPS["model"]}
IN_ONE_LINE |= {"sampler=respaced.steps": None}

TARGETS = [
    pytest.param(path, node, id="-".join((*path.relative_to(CONF).with_suffix("").parts, *where)))
    for path in FILES
    for where, node in nodes(loaded(path))
    if "callbacks" not in where  # Hydra's own
]


@pytest.mark.parametrize(("path", "node"), TARGETS)
def test_keys_are_parameters_and_parameters_are_keys(path, node):
    target = node["_target_"]
    known = parameters(PLUGINS.get(target, target))
    given = {name for name in node if not re.fullmatch(r"_\w+_|defaults", name)}
    assert given - known.keys() == set(), "keys that nobody reads"
    later = AT_THE_CALL.get(path.parent.name, set()) if node.get("_partial_") else set()
    if loaded(path).get("kind") == "reads":
        later = {"cfg"}
    if target in PLUGINS:
        later = {name for name, p in known.items() if p.kind is not p.KEYWORD_ONLY}
    required = {name for name, p in known.items() if p.default is p.empty}
    assert required - given == later, "parameters without a value"
    if target.startswith("ddpm."):
        # A default in Python stands for a key that older checkpoints do not have.
        later |= IN_PYTHON.get(target, set())
        assert known.keys() - given == later, "parameters that nobody can see"
        for name in known.keys() - required - later:
            wired = isinstance(node[name], str) and node[name].startswith("${")
            value = FORMER_VALUES.get(f"{path.parent.name}.{name}", node[name])
            default = known[name].default
            default = list(default) if isinstance(default, tuple) else default
            option = f"{path.parent.name}={path.stem}.{name}"
            assert default == IN_ONE_LINE.get(option, None if wired else value), name


@pytest.mark.parametrize("name", ["config", *(f"job/{job}" for job in GROUPS["job"])])
def test_top_level_keys_are_read(name):
    sources = "".join(path.read_text() for path in (ROOT / "ddpm").rglob("*.py"))
    wires = "".join(path.read_text() for path in FILES)
    for key in body(CONF / f"{name}.yaml"):
        if key not in ("hydra", "job"):
            assert f'"{key}"' in sources or f"${{{key}}}" in wires, f"nobody reads {key}"


def test_groups_are_read():
    config = plain(composed())
    wired = set(composed().job)
    for group in PARTS:
        read = wired | {"hardware", "tracker"} | set(composed().diffusion)
        read |= {"schedule"}  # as betas
        if group in MEASURING:
            for job in ("evaluate", "train"):
                assert f"${{{group}}}" in (CONF / "job" / f"{job}.yaml").read_text()
        else:
            assert group in read, f"nobody reads {group}"
            assert group in config


def test_rules_are_about_keys_that_exist():
    all_metrics = composed("job=evaluate", f"metric=[{','.join(GROUPS['metric'])}]")
    left = set(rules.RULES) - set(flat(plain(all_metrics)))
    jobs = [("job", job, "data", "digits") for job in GROUPS["job"]]
    options = [
        (group, "evaluate" if group in MEASURING else "train", group, option)
        for group, option in OPTIONS
    ]

    for part, job, _, option in [*jobs, *options]:
        name = job if part == "job" else option
        left -= {f"{part}.{key}" for key in flat(body(CONF / part / f"{name}.yaml"))}
    for part, job, group, option in [*jobs, *options]:  # keys that a file has from another one
        if any(key.startswith(f"{part}.") for key in left):
            cfg = composed(f"job={job}", f"{group}={option}", *needed(job, group, option))
            left -= set(flat(plain(cfg)))
    assert left == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONF).as_posix())
def test_a_file_writes_each_key_once_and_no_tab(path):
    text = path.read_text()
    assert "\t" not in text

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"{path.name}: {keys}"
            return super().construct_mapping(node, deep)

    Loader.add_constructor("tag:yaml.org,2002:map", lambda ldr, n: ldr.construct_mapping(n, True))
    yaml.load(text, Loader)
