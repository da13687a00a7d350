"""Labels, guidance and what a network is trained for, on the command line as a user calls it."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from support.base import TINY
from support.image_sets import build as image_set
from support.image_sets import fake_celeba
from support.runs import SAMPLE, assert_equal_state, go, losses_of, metrics_of, pngs, state_of

from ddpm import Pipeline
from ddpm.denoising import NO_LABEL
from ddpm.errors import InputError
from ddpm.guidance.classifier import from_checkpoint
from ddpm.guidance.classifier_free import ClassifierFree
from ddpm.guidance.none import Unguided
from ddpm.metrics.loss import Draws
from ddpm.pretrained import load_network
from ddpm.randomness import StepNoise
from ddpm.runner.config import derive
from ddpm.runner.config.build import build
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.samplers.dpm_solver import DPMSolver
from ddpm.samplers.heun import Heun
from ddpm.training.step import Step

SLOW = pytest.mark.slow
# So much that a few steps tell labels, steps and schedules apart.
QUICK = ["optimizer.lr=1e-2", "job.warmup_steps=0", "schedule.T=40", "job.save_every=null"]
WORDS = [*TINY, "objective=eps", *QUICK, "job.sample_every=null", "job.num_samples=2"]
CLASSIFIER = [
    word for word in WORDS if not word.startswith(("model=", "objective", "sampler", "job.num_s"))
]
CLASSIFIER = [word for word in CLASSIFIER if not word.startswith("job.sample")] + [
    *("job=train_classifier", "model.widths=[4,8]", "model.num_heads=1"),
    *("job.log_every=3", "job.evaluate_every=3"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs"), {}


@pytest.fixture
def trained(run, runs):
    """The folder of a finished run, trained once for all tests that ask for it."""
    folder, done = runs

    def train(name, *arguments):
        if name not in done:
            go(run, *arguments, f"output_dir={folder / name}")
            done[name] = arguments
        assert done[name] == arguments
        return folder / name

    return train


@pytest.fixture
def conditional(trained):
    return trained("conditional", *WORDS, "data.conditional=true")


@pytest.fixture
def unconditional(trained):
    return trained("unconditional", *WORDS)


@pytest.fixture
def classifier(trained):
    return trained("classifier", *CLASSIFIER)


@pytest.fixture
def draw(run, tmp_path):
    """Draw with a checkpoint: uint8 (B, C, H, W); `draw.folder` is where."""
    count = itertools.count()

    def call(checkpoint, *arguments):
        call.folder = tmp_path / f"drawn{next(count)}"
        go(run, *SAMPLE, f"checkpoint={checkpoint}", *arguments, f"output_dir={call.folder}")
        return pngs(call.folder)

    return call


def refused(run, tmp_path, *arguments):
    """The message on stderr; nothing may be written."""
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "data")}
    status, _, err = run(*arguments)
    assert status == 2, err
    assert 1 <= len(err.splitlines()) <= 5, err
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "data")}
    assert after == before
    return err


# labels


def test_conditional_run_samples_the_given_labels(conditional, draw):
    free = ["guidance=classifier_free", "guidance.scale=2", "job.labels=[0,1,2,3]"]
    images = draw(conditional, *free, "job.num_samples=6")
    assert json.loads((draw.folder / "labels.json").read_text()) == {
        f"{seed:06d}.png": label for seed, label in enumerate([0, 1, 2, 3, 0, 1])
    }
    in_twos = draw(conditional, *free, "job.num_samples=6", "job.batch_size=2")
    assert (images.int() - in_twos.int()).abs().max() <= 1
    late = draw(conditional, *free[:2], "job.labels=[2,3]", "job.first_seed=2", "job.num_samples=2")
    assert (images[2:4].int() - late.int()).abs().max() <= 1
    other = draw(conditional, *free[:2], "job.labels=[7]", "job.num_samples=6")
    assert all(not torch.equal(one, two) for one, two in zip(images, other, strict=True))


def test_labels_are_each_class_in_turn_unless_given(conditional, draw):
    images = draw(conditional, "job.num_samples=12")
    labels = json.loads((draw.folder / "labels.json").read_text())
    assert list(labels.values()) == [*range(10), 0, 1]
    config = yaml.safe_load((draw.folder / "config.yaml").read_text())
    assert config["job"]["labels"] == list(range(10))
    pipeline = Pipeline.from_checkpoint(conditional)
    assert torch.equal(pipeline.sample(12, labels=range(10)), images)


def test_unconditional_samples_have_no_labels(unconditional, draw):
    draw(unconditional, "job.num_samples=1")
    assert not (draw.folder / "labels.json").exists()


@pytest.mark.slow
def test_guidance_scale_1_is_conditional_and_0_unconditional(conditional, draw):
    asked = ["job.labels=[3,8]", "job.num_samples=2"]
    plain = draw(conditional, "guidance=none", *asked)
    one, nothing, three = (
        draw(conditional, "guidance=classifier_free", f"guidance.scale={scale}", *asked)
        for scale in (1, 0, 3)
    )
    assert torch.equal(one, plain)
    assert not torch.equal(three, plain)
    assert not torch.equal(nothing, plain)
    assert torch.equal(nothing, Pipeline.from_checkpoint(conditional).sample(2))


@pytest.mark.slow
def test_previews_show_all_classes(run, tmp_path):
    go(run, *WORDS, "data.conditional=true", "guidance=classifier_free", "output_dir=run")
    assert (tmp_path / "run" / "samples" / "step-000006.png").exists()
    assert state_of(tmp_path / "run", 6)["hparams"]["guidance"]["scale"] == 2.0


def test_resumed_conditional_run_equals_an_uninterrupted_one(run, conditional, tmp_path):
    go(run, *WORDS, "data.conditional=true", "job.max_steps=2", "output_dir=parts")
    go(run, "resume=parts", "job.max_steps=6")
    assert_equal_state(state_of(tmp_path / "parts", 6), state_of(conditional, 6))
    assert losses_of(tmp_path / "parts") == losses_of(conditional)


def test_labels_are_learned(conditional, unconditional):
    assert losses_of(conditional)[0] != losses_of(unconditional)[0]
    weights = state_of(conditional, 6)["model"]
    assert {name for name in weights if name.startswith("class_embedding")}
    assert not [name for name in state_of(unconditional, 6)["model"] if "class_emb" in name]


# label dropout


def step_with(label_dropout):
    """A Step for its `drop_labels` alone."""
    made = object.__new__(Step)
    made.label_dropout = label_dropout
    return made


def test_labels_are_dropped_independently():
    noise = StepNoise(0, 5000, (1, 1, 1), 10, torch.device("cpu"))
    label = torch.arange(5000) % 10
    *_, u = noise(3, slice(None))
    dropped = step_with(0.1).drop_labels(label, u)
    gone = dropped == NO_LABEL
    assert gone.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(dropped[~gone], label[~gone])
    assert {label[gone][i].item() for i in range(100)} == set(range(10))
    assert torch.equal(step_with(0.0).drop_labels(label, u), label)
    assert step_with(None).drop_labels(label, u) is None


def test_dropped_labels_do_not_depend_on_rank_or_micro_batch():
    noise = StepNoise(0, 64, (1, 1, 1), 10, torch.device("cpu"))
    label, drop = torch.arange(64), step_with(0.5).drop_labels
    whole = drop(label, noise(7, slice(None))[3])
    parts = [drop(label[rows], noise(7, rows)[3]) for rows in (slice(0, 32), slice(32, 64))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(drop(label, noise(8, slice(None))[3]), whole)


def test_accumulation_does_not_change_a_conditional_run(run, conditional, tmp_path):
    go(run, *WORDS, "data.conditional=true", "job.accumulate_grad_batches=4", "output_dir=two")
    one, two = dict(losses_of(conditional)), dict(losses_of(tmp_path / "two"))
    assert two[1] == pytest.approx(one[1], rel=1e-4)
    assert two[2] == pytest.approx(one[2], rel=1e-2)


def test_dropping_all_labels_trains_the_null_class(run, conditional, tmp_path):
    go(run, *WORDS, "data.conditional=true", "job.label_dropout=0.999999", "output_dir=none")
    assert losses_of(tmp_path / "none") != losses_of(conditional)


# a classifier that guides


@pytest.mark.slow
def test_classifier_guides_an_unconditional_network(classifier, unconditional, draw):
    guided = ["guidance=classifier", f"guidance.classifier={classifier}", "guidance.scale=8"]
    images = draw(unconditional, *guided, 'job.labels=["1",2]', "job.num_samples=4")
    assert list(json.loads((draw.folder / "labels.json").read_text()).values()) == [1, 2, 1, 2]
    other = draw(unconditional, *guided, "job.labels=[7]", "job.num_samples=4")
    assert not torch.equal(images, other)
    free = draw(unconditional, *guided[:2], "guidance.scale=0", "job.num_samples=4")
    assert torch.equal(free, draw(unconditional, "job.num_samples=4"))


def test_classifier_reports_its_accuracy(classifier):
    assert {"train_classifier", "classifier"} <= set(
        yaml.safe_load((classifier / "config.yaml").read_text())["choices"].values()
    )
    rows = [row for row in metrics_of(classifier) if "eval/accuracy_t0" in row]
    assert [row["step"] for row in rows] == [3, 6]
    for row in rows:
        levels = [key for key in row if key.startswith("eval/accuracy_t")]
        assert levels == [f"eval/accuracy_t{t}" for t in (0, 4, 10, 20, 29, 39)]
        assert all(0 <= row[key] <= 1 for key in levels)


@pytest.mark.slow
def test_classifier_is_validated_on_held_out_images(run, classifier, data_dir, tmp_path):
    go(run, *CLASSIFIER, "job.validate_every=3", "output_dir=validated")
    validated = tmp_path / "validated"
    assert_equal_state(state_of(validated, 6), state_of(classifier, 6))
    assert losses_of(validated) == losses_of(classifier)
    assert not any("eval/loss" in row for row in metrics_of(classifier))
    rows = [row for row in metrics_of(validated) if "eval/loss" in row]
    assert [row["step"] for row in rows] == [3, 6]
    network, diffusion, _, _ = load_network(validated, job="train_classifier")
    draws, data = Draws(32, diffusion.T), image_set("digits", data_dir)
    figures = []
    for part in (data.held_out(), data):
        images, label = part.__getitems__(draws.pictures(len(part)).tolist())
        eps = draws.noise(range(32), images.shape[1:])
        x_t = diffusion.q_sample(diffusion.codec.encode(images), draws.t, eps)
        with torch.no_grad():
            log_probs = network(x_t, draws.t).log_softmax(1)
        loss = -log_probs[torch.arange(32), label].mean().item()
        figures.append([loss, (log_probs.argmax(1) == label).double().mean().item()])
    (loss, accuracy), (trained_loss, trained_accuracy) = figures
    expected = {"eval/loss": loss, "eval/loss_gap": loss - trained_loss}
    expected |= {"eval/accuracy": accuracy, "eval/accuracy_gap": accuracy - trained_accuracy}
    assert {name: rows[-1][name] for name in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_classifier_resumes_from_its_folder(run, classifier, tmp_path):
    go(run, *CLASSIFIER, "job.max_steps=3", "output_dir=parts")
    assert "3 to 6" in go(run, "resume=parts", "job.max_steps=6")
    parts = tmp_path / "parts"
    assert_equal_state(state_of(parts, 6), state_of(classifier, 6))
    assert [{k: v for k, v in row.items() if "eval" in k} for row in metrics_of(parts)] == [
        {k: v for k, v in row.items() if "eval" in k} for row in metrics_of(classifier)
    ]
    assert "3" in go(run, "resume=parts", "job.max_steps=7")


@pytest.mark.slow
def test_checkpoint_of_a_classifier_is_refused_by_other_jobs(
    run, classifier, unconditional, tmp_path
):
    err = refused(run, tmp_path, *SAMPLE, f"checkpoint={classifier}")
    assert "job=train_classifier, not of job=train" in err
    assert f"guidance.classifier={classifier}" in err
    guided = ["guidance=classifier", f"guidance.classifier={unconditional}"]
    err = refused(run, tmp_path, *SAMPLE, f"checkpoint={unconditional}", *guided)
    assert f"guidance.classifier={unconditional}: of job=train, not" in err
    err = refused(run, tmp_path, f"resume={classifier}", "job=train", "job.max_steps=9")
    assert "job=train:" in err
    assert "job=train_classifier" in err


@pytest.mark.slow
def test_classifier_of_other_data_is_refused(run, trained, classifier, unconditional, tmp_path):
    guided = ["guidance=classifier", f"guidance.classifier={classifier}"]
    larger = trained("larger", *WORDS, "data.image_size=8", "job.max_steps=1")
    err = refused(run, tmp_path, *SAMPLE, f"checkpoint={larger}", *guided)
    for text in ("guidance.classifier=", "image_size=16", "image_size=8"):
        assert text in err
    other = tmp_path / "other"
    shutil.copytree(classifier, other)
    (path,) = (other / "checkpoints").iterdir()
    state = torch.load(path, weights_only=True)
    state["hparams"]["data"]["_target_"] = "ddpm.data.mnist.MNIST"
    state["hparams"]["choices"]["data"] = "mnist"
    torch.save(state, path)
    guided = ["guidance=classifier", f"guidance.classifier={other}"]
    err = refused(run, tmp_path, *SAMPLE, f"checkpoint={unconditional}", *guided)
    for text in ("guidance.classifier=", "data=mnist", "data=digits"):
        assert text in err


def test_labels_may_be_names_of_classes():
    data = {"_target_": "ddpm.data.fashion_mnist.FashionMNIST", "image_size": 16}
    data |= {"channels": 1, "num_classes": 10, "conditional": True, "resize_mode": "crop"}
    config = {"data": data, "job": {"labels": ["Bag", 3, "Coat"]}, "choices": {"data": "f"}}
    derive.named_labels(config)
    assert config["job"]["labels"] == [8, 3, 4]
    for given in ("Bagg", [3, "Bagg"]):
        config["job"]["labels"] = given
        with pytest.raises(InputError, match=r"^job.labels=.* 'Bagg'; .* Did you mean 'Bag'\?"):
            derive.named_labels(config)


@pytest.mark.quick(5)
@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ("job.labels=[12]", ["job.labels=[12]", "0 to 9"]),
        ("job.labels=[three]", ["job.labels=", "three", "0 to 9"]),
        ("job.labels=[]", ["job.labels=[]", "a list of classes"]),
        ("job.labels=true", ["job.labels=", "a list of classes"]),
        ("job.labels=[true]", ["job.labels=", "0 to 9"]),
        ("guidance=classifier", ["guidance.classifier", "must be set"]),
        ("guidance=classifier guidance.classifier=nowhere", ["guidance.classifier=nowhere"]),
        ("guidance=classifier_free guidance.scale=-1", ["guidance.scale=-1"]),
        ("data.conditional=false", ["data.conditional=False", "was trained with True"]),
    ],
)
def test_invalid_labels_are_refused(row, texts, run, conditional, tmp_path):
    err = refused(run, tmp_path, *SAMPLE, f"checkpoint={conditional}", *row.split())
    for text in texts:
        assert text in err


@pytest.mark.parametrize("row", ["job.labels=[3]", "guidance=classifier_free"])
def test_labels_are_refused_where_there_are_none(row, run, unconditional, tmp_path):
    err = refused(run, tmp_path, *SAMPLE, f"checkpoint={unconditional}", row)
    assert row in err
    assert "trained without labels (data.conditional=false)" in err


SAMPLERS = {
    "ddim": DDIM(steps=3, eta=0.0),
    "ddpm": DDPM(steps=None, variance="fixed_large"),
    "respaced": DDPM(steps=3, variance="auto"),
    "heun": Heun(steps=3),
    "dpm_solver": DPMSolver(steps=3, order=2),
}


@pytest.mark.quick(2)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_goes_with_every_guidance(sampler, conditional, classifier):
    """On the command line, test_conf.py composes each of them, and the tests here some of both."""
    guidances = [
        Unguided(),
        ClassifierFree(scale=2.0),
        from_checkpoint(classifier=classifier, scale=8.0),
    ]
    images = [
        Pipeline.from_checkpoint(
            conditional, sampler=SAMPLERS[sampler], guidance=guidance, device="cpu"
        ).sample(2, labels=range(10))
        for guidance in guidances
    ]
    for one, other in itertools.combinations(images, 2):
        assert one.shape == (2, 1, 16, 16)
        assert not torch.equal(one, other)


# what a network was trained for


V = ["objective=v", "weighting=min_snr", "weighting.gamma=3", "schedule=cosine"]


@pytest.fixture
def v_run(trained):
    return trained("v", *WORDS, *V)


@pytest.mark.slow
def test_checkpoint_holds_objective_weighting_and_schedule(run, v_run, draw, tmp_path):
    hparams = state_of(v_run, 6)["hparams"]
    chosen = {group: hparams["choices"][group] for group in ("objective", "weighting", "schedule")}
    assert chosen == {"objective": "v", "weighting": "min_snr", "schedule": "cosine"}
    assert hparams["diffusion"]["weighting"]["gamma"] == 3
    images = draw(v_run, "job.num_samples=2")
    config = yaml.safe_load((draw.folder / "config.yaml").read_text())
    assert config["diffusion"] == hparams["diffusion"]
    assert config["schedule"]["T"] == 40
    assert torch.equal(draw(v_run, "job.num_samples=2", *V, "schedule.T=40"), images)
    assert torch.equal(Pipeline.from_checkpoint(v_run).sample(2), images)
    changes = ["objective=eps", "weighting=uniform", "schedule=linear", "schedule.T=1000"]
    changes += ["weighting.gamma=5", "objective.learned_variance=true"]
    for change in changes:
        err = refused(run, tmp_path, *SAMPLE, f"checkpoint={v_run}", change)
        key, _, value = change.partition("=")
        assert f"{key}={value.replace('true', 'True')}".rstrip("0") in err
        assert "was trained with" in err


@pytest.mark.slow
def test_resumed_run_keeps_its_objective(run, v_run, tmp_path):
    go(run, *WORDS, *V, "job.max_steps=2", "output_dir=parts")
    err = refused(run, tmp_path, "resume=parts", "job.max_steps=6", "objective=eps")
    assert "objective=eps: resume=parts was trained with v" in err
    go(run, "resume=parts", "job.max_steps=6")
    assert_equal_state(state_of(tmp_path / "parts", 6), state_of(v_run, 6))


@pytest.mark.slow
def test_a_learned_variance_doubles_the_channels(run, trained, draw, tmp_path):
    words = [*WORDS, "objective.learned_variance=true"]
    folder = trained("variance", *words)
    hparams = state_of(folder, 6)["hparams"]
    assert hparams["model"]["out_channels"] == 2
    images = draw(folder, "job.num_samples=2", "sampler=respaced", "sampler.steps=4")
    learned = ["sampler=respaced", "sampler.steps=4", "sampler.variance=learned"]
    assert torch.equal(draw(folder, "job.num_samples=2", *learned), images)
    small = draw(folder, "job.num_samples=2", *learned[:2], "sampler.variance=fixed_small")
    assert not torch.equal(small, images)
    go(run, *words, "job.max_steps=3", "output_dir=parts")
    go(run, "resume=parts", "job.max_steps=6")
    assert_equal_state(state_of(tmp_path / "parts", 6), state_of(folder, 6))


@pytest.mark.slow
def test_a_learned_variance_goes_with_labels(run, draw, tmp_path):
    words = ["objective=v", "objective.learned_variance=true", "data.conditional=true"]
    go(run, *WORDS, *words, "job.max_steps=1", "output_dir=run")
    asked = ["guidance=classifier_free", "sampler=ddpm", "job.num_samples=2"]
    assert draw(tmp_path / "run", *asked, "guidance.rescale=0.7").shape == (2, 1, 16, 16)


@pytest.mark.slow
def test_learned_schedule_is_trained_and_used_for_sampling(run, trained, draw, tmp_path):
    folder = trained("schedule", *WORDS, "schedule=learned", "data.conditional=true")
    state = state_of(folder, 6)
    pipeline = Pipeline.from_checkpoint(folder)
    names = {f"schedule.{name}" for name, _ in pipeline.diffusion.schedule.named_parameters()}
    assert set(state["diffusion"]) == names
    fresh = Pipeline.from_checkpoint(folder).diffusion
    start = build(state["hparams"]["diffusion"], "diffusion")
    for name, value in start.state_dict().items():
        assert not torch.equal(value, state["diffusion"][name]), name
    assert not torch.equal(start.betas, fresh.betas)
    assert torch.equal(fresh.betas, pipeline.diffusion.betas)
    expected = fresh.schedule.betas()
    assert torch.equal(fresh.betas, expected.float())
    assert fresh.alphas_cumprod_at(20) == pytest.approx((1 - expected).cumprod(0)[20].item())
    images = draw(folder, "job.num_samples=3")
    assert torch.equal(pipeline.sample(3, labels=range(10)), images)
    pipeline.diffusion = start
    assert not torch.equal(pipeline.sample(3, labels=range(10)), images)

    words = ["schedule=learned", "data.conditional=true"]
    go(run, *WORDS, *words, "job.max_steps=3", "output_dir=parts")
    go(run, "resume=parts", "job.max_steps=6")
    other = state_of(tmp_path / "parts", 6)
    assert_equal_state(other, state)
    for name, value in state["diffusion"].items():
        assert torch.equal(value, other["diffusion"][name]), name
    assert losses_of(tmp_path / "parts") == losses_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    ["linear", *(pytest.param(s, marks=SLOW) for s in ("cosine", "quadratic", "sigmoid"))],
)
def test_a_schedule_that_ends_in_pure_noise(schedule, run, draw, tmp_path):
    words = [f"schedule={schedule}", "schedule.zero_terminal_snr=true"]
    err = refused(run, tmp_path, *WORDS, *words)
    for text in ("schedule.zero_terminal_snr=true", "objective=eps", "objective=v or x_0"):
        assert text in err
    settings = [word for word in WORDS if word != "objective=eps"]
    go(run, *settings, *words, "objective=v", "job.max_steps=2", "output_dir=run")
    images = draw(tmp_path / "run", "job.num_samples=1", "sampler.spacing=trailing")
    assert images.shape == (1, 1, 16, 16)
    assert Pipeline.from_checkpoint(tmp_path / "run").diffusion.alphas_cumprod[-1] == 0


def test_betas_that_leave_signal_in_x_T_warn_once(run, tmp_path):
    words = ["schedule.rescale=false", "schedule.T=100", "job.max_steps=1", "output_dir=run"]
    status, out, err = run(*[w for w in WORDS if w != "schedule.T=40"], *words)
    assert status == 0, err
    (line,) = [line for line in (out + err).splitlines() if "schedule.rescale" in line]
    assert "schedule.T=100" in line
    assert "pure noise" in line


# runs of before


def as_before(folder):
    """Take from a run all that runs did not have before there were objectives and guidance."""
    groups = ("objective", "weighting", "guidance")

    def strip(config):
        for group in groups:
            config.pop(group, None)
            config["choices"].pop(group, None)
        for group in ("objective", "weighting"):
            config["diffusion"].pop(group)
        for schedule in (config["schedule"], config["diffusion"]["betas"]):
            del schedule["rescale"], schedule["zero_terminal_snr"]
        del config["sampler"]["spacing"], config["data"]["conditional"]
        del config["job"]["label_dropout"]
        config["job"] |= {"_target_": "ddpm.jobs.train.train", "_partial_": True}

    config = yaml.safe_load((folder / "config.yaml").read_text())
    strip(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for path in (folder / "checkpoints").iterdir():
        state = torch.load(path, weights_only=True)
        strip(state["hparams"])
        del state["diffusion"]
        torch.save(state, path)


@pytest.mark.slow
def test_old_run_samples_and_resumes(run, unconditional, draw, tmp_path):
    go(run, *WORDS, "job.max_steps=3", "output_dir=old")
    old = tmp_path / "old"
    images = draw(old, "job.num_samples=2")
    as_before(old)
    assert torch.equal(draw(old, "job.num_samples=2"), images)
    assert torch.equal(Pipeline.from_checkpoint(old).sample(2), images)
    agreeing = ["objective=eps", "data.conditional=false", "schedule.zero_terminal_snr=false"]
    assert torch.equal(draw(old, "job.num_samples=2", *agreeing), images)
    for change in ("objective=v", "data.conditional=true", "weighting=min_snr"):
        assert change.partition("=")[0] in refused(run, tmp_path, *SAMPLE, "checkpoint=old", change)
    go(run, "resume=old", "job.max_steps=6")
    assert_equal_state(state_of(old, 6), state_of(unconditional, 6))
    assert losses_of(old) == losses_of(unconditional)


@pytest.mark.slow
def test_run_with_classifier_guided_previews_resumes_and_samples(
    run, unconditional, classifier, draw, tmp_path
):
    """Its previews show that, and it goes on and is sampled from by its folder alone."""
    led = ["guidance=classifier", f"guidance.classifier={classifier}", "guidance.scale=50"]
    go(run, *WORDS, *led, "output_dir=led")
    name = sorted(path.name for path in (unconditional / "samples").iterdir())[-1]
    assert (tmp_path / "led/samples" / name).read_bytes() != (
        unconditional / "samples" / name
    ).read_bytes()
    go(run, "resume=led", "job.max_steps=8")
    go(run, "job=sample", "checkpoint=led", "job.num_samples=2", "output_dir=drawn")


@pytest.mark.slow
def test_a_classifier_needs_no_objective(run, tmp_path):
    go(run, *CLASSIFIER, "schedule.zero_terminal_snr=true", "output_dir=zero")


def test_guided_interpolation_needs_a_class(run, conditional, tmp_path):
    error = refused(
        run, tmp_path, "job=interpolate", f"checkpoint={conditional}", "guidance=classifier_free"
    )
    assert "job.labels" in error


def test_labels_in_python_are_checked(conditional, unconditional):
    pipeline = Pipeline.from_checkpoint(conditional, device="cpu")
    for labels in ([10], [-1], []):
        with pytest.raises(InputError, match="labels"):
            pipeline.sample(2, labels=labels)
    with pytest.raises(InputError, match="without labels"):
        Pipeline.from_checkpoint(unconditional, device="cpu").sample(2, labels=[1])


def test_classifier_is_refused_as_a_pipeline(classifier):
    with pytest.raises(InputError, match="job=train_classifier"):
        Pipeline.from_checkpoint(classifier, device="cpu")


@pytest.mark.slow
def test_accumulation_does_not_change_a_learned_schedule(run, tmp_path):
    words = [*WORDS, "schedule=learned", "hardware.precision=32-true"]
    go(run, *words, "output_dir=one")
    go(run, *words, "job.accumulate_grad_batches=4", "output_dir=parts")
    one, parts = (
        state_of(tmp_path / name, 6)["diffusion"]["schedule.weight_2"] for name in ("one", "parts")
    )
    torch.testing.assert_close(one, parts, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_product_of_attributes_is_learned_and_drawn_by_its_number(run, tmp_path, monkeypatch):
    """On faces of one grey each, by their class."""
    greys = [20, 90, 160, 230]  # neither, smiling, male, both
    faces = [
        (split, number // 2 == 1, number % 2 == 1, np.full((218, 178, 3), grey, np.uint8))
        for split in ("train", "train", "valid")
        for number, grey in enumerate(greys)
    ]
    fake_celeba(tmp_path, monkeypatch, faces)
    data = ["data=celeba", "data.attribute=[Male,Smiling]", "data.conditional=true"]
    data += ["data.image_size=8", f"data_dir={tmp_path}"]
    words = [*TINY, "objective=x_0", "job.max_steps=150", "job.batch_size=16", "job.save_every=150"]
    go(run, *words, *data, "optimizer.lr=3e-3", "job.validate_every=150", "output_dir=run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["data"]["num_classes"], config["model"]["num_classes"]) == (4, 4)
    assert "eval/loss" in metrics_of(tmp_path / "run")[-1]
    words = [*SAMPLE, "checkpoint=run", "job.num_samples=4", "sampler.steps=10"]
    go(run, *words, "job.labels=[3,0,2,1]", "job.weights=model", "output_dir=drawn")
    drawn = pngs(tmp_path / "drawn").float().mean((1, 2, 3))
    assert (drawn - torch.tensor([greys[n] for n in (3, 0, 2, 1)])).abs().max() < 25, drawn
    named = json.loads((tmp_path / "drawn" / "labels.json").read_text())
    assert list(named.values()) == [3, 0, 2, 1]
    status, _, err = run(*words, "job.labels=[4]", "output_dir=none")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("job.labels=[4]: 4 is not one of 0 to 3")
