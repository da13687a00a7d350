"""Non-finite losses and gradients never reach the weights.

Such a step is skipped on all ranks and counted; `job.max_nonfinite_steps` consecutive ones end the
run with a helpful message, and every checkpoint is good. Covered are losses and gradients of one
micro-batch, of one rank, of the schedule alone, and in float16 with its scale; non-finite weights;
and resuming from the newest checkpoint with another learning rate.
"""

import copy
import itertools
import math
import mmap
import os

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.wrappers import _FabricModule
from support.crash import TINY, go, output_of
from support.ranks import ranks
from support.runs import assert_equal_state, metrics_of, state_of, status_of, tensors
from torch import nn

from ddpm.denoising import training_loss, training_losses
from ddpm.diffusion import GaussianDiffusion
from ddpm.ema.simple import Simple
from ddpm.errors import InputError
from ddpm.images import Pixels
from ddpm.jobs.train import Train
from ddpm.models.convnet import ConvNet
from ddpm.randomness import StepNoise
from ddpm.schedules.learned import LearnedSchedule
from ddpm.schedules.linear import linear
from ddpm.training.health import Watch
from ddpm.training.lr import LearningRate
from ddpm.training.meter import Meter
from ddpm.training.schedule import ScheduleTraining
from ddpm.training.state import TrainState
from ddpm.training.step import Step, StepMetrics

BATCH, SHAPE = 8, (1, 8, 8)


class Machine:
    """A Step with everything that it needs: a small network, and the same batches in all tests.

    Args:
        broken: the steps, 0, 1, ..., in which `what` becomes non-finite.
        on_device: let the optimizer itself skip a step, as on a GPU.
    """

    def __init__(
        self,
        broken=(),
        what="nan loss",
        *,
        on_device=False,
        optimizer=torch.optim.Adam,
        accumulate=1,
        learned=False,
        clip=1.0,
        scaler=None,
        **knobs,
    ):
        torch.manual_seed(0)
        plugin = {"plugins": MixedPrecision("16-mixed", "cpu", scaler)} if scaler else {}
        fabric = Fabric(accelerator="cpu", devices=1, **plugin)
        size = {"channels": 1, "out_channels": 1, "image_size": 8, "num_classes": None}
        self.net = ConvNet(**size, width=4, time_conditioning=True)
        betas = linear(50, 1e-4, 0.02, rescale=True, zero_terminal_snr=False)
        if learned:
            betas = LearnedSchedule(T=50, log_snr_start=9.0, log_snr_end=-9.0, hidden=8)
        self.diffusion = GaussianDiffusion(betas=betas)
        groups = [{"params": list(self.net.parameters())}]
        if learned:
            groups.append({"params": list(self.diffusion.parameters()), "weight_decay": 0.0})
        self.inner = optimizer(groups, **{"lr": 1e-2, "fused": True} | knobs)
        self.ema = Simple(self.net, decay=0.99, ramp=10)
        self.learned = TrainState(
            self.net, self.ema, self.diffusion, self.inner, fabric.strategy.precision
        )
        self.n, self.part = 0, 0
        self.broken, self.what = broken, what
        rows = slice(0, BATCH)
        self.schedule = None
        if learned:
            self.schedule = ScheduleTraining(
                fabric, self.net, self.diffusion, rows, BATCH, accumulate
            )
        self.break_it()
        model, outer = fabric.setup(self.net, self.inner)
        self.step = Step(
            fabric=fabric,
            model=model,
            optimizer=outer,
            diffusion=self.diffusion,
            loss=self.loss,
            ema=self.ema,
            noise=StepNoise(0, BATCH, SHAPE, 50, fabric.device),
            rows=rows,
            flip=False,
            label_dropout=None,
            accumulate=accumulate,
            clip_grad_norm=clip,
            learning_rate=LearningRate(self.inner.defaults["lr"], 0, None),
            schedule=self.schedule,
        )
        if on_device:
            self.step.skips_on_device = lambda inner: True

    def break_it(self):
        """Make gradients or the schedule's loss non-finite."""
        amount = math.nan if "nan" in self.what else 1e30
        if self.what in ("nan gradient", "huge gradient"):
            weight = self.net.conv_2.weight
            weight.register_hook(lambda g: g + amount if self.breaks else g)
        if "schedule" in self.what:
            real = self.schedule.loss
            self.schedule.loss = lambda *x: real(*x) * (amount if self.breaks else 1)

    @property
    def breaks(self):
        return self.n in self.broken

    def loss(self, model, x_0, t, eps, label):
        value = training_losses(self.diffusion, model, x_0, t, eps, label)
        self.part += 1
        if self.breaks and (self.what == "nan loss" or (self.what == "part" and self.part == 2)):
            return value * math.nan
        if self.breaks and self.what == "inf loss":
            return value + math.inf  # does not change the gradient
        return value

    def images(self, n):
        g = torch.Generator().manual_seed(n)
        return torch.randint(256, (BATCH, *SHAPE), generator=g, dtype=torch.uint8)

    def go(self, steps=6):
        """Whether each of the steps was non-finite."""
        nonfinite = []
        for n in range(self.n, self.n + steps):
            self.n, self.part = n, 0
            nonfinite.append(bool(self.step(n, self.images(n), torch.zeros(BATCH))[2]))
        self.n += 1
        return nonfinite

    def state(self):
        return copy.deepcopy({k: v for k, v in self.learned.state().items() if k != "scaler"})


def assert_all_finite(state):
    for name, value in tensors(state).items():
        assert not isinstance(value, torch.Tensor) or value.isfinite().all(), name
    assert all(value.isfinite().all() for value in state["diffusion"].values())


def assert_equal(one, other):
    assert_equal_state(one, other)
    for name, value in one["diffusion"].items():
        assert torch.equal(value, other["diffusion"][name]), name


WAYS = ["nan loss", "inf loss", "nan gradient", "huge gradient", "part"]
WAYS += ["nan in the schedule", "huge in the schedule"]


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("what", WAYS)
def test_a_nonfinite_step_changes_nothing(what, on_device):
    parts = 2 if what == "part" else 1
    machine = Machine([3], what, on_device=on_device, accumulate=parts, learned="schedule" in what)
    assert machine.go(3) == [False] * 3
    before = machine.state()
    assert machine.go(1) == [True]
    after = machine.state()
    for part in ("model", "diffusion", "optimizer"):
        one, other = ({"model": {}, "ema": {}, "optimizer": s[part]} for s in (before, after))
        one, other = tensors(one), tensors(other)
        assert one.keys() == other.keys()
        for name, value in one.items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert same(value, other[name]), name
    assert machine.go(2) == [False] * 2
    assert_all_finite(machine.state())
    assert not torch.equal(
        machine.state()["model"]["conv_2.weight"], before["model"]["conv_2.weight"]
    )


@pytest.mark.parametrize("clip", [1.0, None])
def test_a_skipped_step_equals_a_loop_without_it(clip):
    machine, plain = Machine([2], "nan gradient", clip=clip), Machine(clip=clip)
    assert machine.go() == [n == 2 for n in range(6)]
    net, optimizer = plain.net, plain.inner
    for n in range(6):
        t, eps, _, _ = plain.step.noise(n, slice(0, BATCH))
        training_loss(plain.diffusion, net, Pixels().encode(plain.images(n)), t, eps).backward()
        nn.utils.clip_grad_norm_(net.parameters(), clip or math.inf)
        if n != 2:
            optimizer.step()
        optimizer.zero_grad()
        plain.ema.update(n)
    assert_equal(machine.state(), plain.state())


ADAMS = [torch.optim.Adam, torch.optim.AdamW]


@pytest.mark.parametrize("optimizer", ADAMS)
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_skipping_on_the_device_equals_skipping_on_the_host(learned, optimizer):
    changes = {"learned": learned, "optimizer": optimizer, "weight_decay": 0.1, "broken": [1, 2, 4]}
    host, device = Machine(**changes), Machine(**changes, on_device=True)
    assert host.go() == device.go()
    assert_equal(host.state(), device.state())
    for entry in device.state()["optimizer"]["state"].values():
        assert entry["step"] == 3


def test_the_first_step_may_be_skipped_on_the_device():
    host, device = Machine([0]), Machine([0], on_device=True)
    assert host.go() == device.go() == [True] + [False] * 5
    assert_equal(host.state(), device.state())


# float16


def scaler(**knobs):
    return torch.amp.GradScaler("cpu", **{"init_scale": 256.0, "growth_interval": 1000} | knobs)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", [1.0, None])
def test_float16_is_trained_with_any_optimizer(fused, clip):
    one, other = (
        Machine(scaler=scaler(init_scale=s), fused=fused, clip=clip) for s in (1.0, 256.0)
    )
    assert one.go() == other.go() == [False] * 6
    for name, weight in one.state()["model"].items():
        torch.testing.assert_close(weight, other.state()["model"][name], rtol=0.1, atol=5e-3)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("what", [way for way in WAYS if way != "part"])
def test_float16_skips_only_the_nonfinite_step(what, fused):
    machine = Machine([2, 3], what, scaler=scaler(), learned="schedule" in what, fused=fused)
    assert machine.go(2) == [False] * 2
    before = machine.state()
    assert machine.go(2) == [True] * 2
    weights = machine.state()["model"]
    assert all(torch.equal(weight, weights[name]) for name, weight in before["model"].items())
    assert machine.go(2) == [False] * 2
    assert_all_finite(machine.state())
    assert machine.state()["optimizer"]["state"][0]["step"] == 4
    fell = 256 / 4 if what in ("nan loss", "nan gradient") else 256
    assert machine.learned.state()["scaler"]["scale"] == fell


def test_the_scale_of_float16_is_saved_and_restored():
    machine = Machine([1], "nan gradient", scaler=scaler(growth_interval=2))
    machine.go()
    state = copy.deepcopy(machine.learned.state())
    assert state["scaler"]["scale"] == 512.0  # 256, halved, doubled twice in four good steps
    again = Machine(scaler=scaler())
    again.learned.load(state, "x.pt")
    assert again.learned.precision.scaler.get_scale() == 512.0
    again.n = machine.n
    machine.broken = []
    assert again.go() == machine.go() == [False] * 6
    assert_equal(again.state(), machine.state())


# what is written


@pytest.mark.parametrize("part", ["model", "ema", "diffusion", "buffer"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_weights_are_not_saved(part, value):
    machine = Machine(learned=True)
    machine.net.register_buffer("running", torch.zeros(2))
    machine.learned.state()
    named = {
        "model": machine.net.conv_1.weight,
        "ema": machine.ema.model.conv_1.weight,
        "diffusion": machine.diffusion.schedule.bias_2,
        "buffer": machine.net.running,
    }
    with torch.no_grad():
        named[part].view(-1)[1] = value
    with pytest.raises(InputError, match="not finite any more") as refused:
        machine.learned.state()
    assert len(str(refused.value).splitlines()) <= 5


@pytest.mark.parametrize("optimizer", ADAMS)
def test_the_optimizer_restores_its_state_and_keeps_its_options(optimizer):
    knobs = {"betas": (0.5, 0.6), "weight_decay": 0.3, "eps": 1e-3, "lr": 0.5}
    old, new, hand = (
        Machine(optimizer=optimizer),
        *(Machine(optimizer=optimizer, **knobs) for _ in "12"),
    )
    old.go(3)
    state = copy.deepcopy(old.learned.state())
    new.learned.load(state, "x.pt")
    (group,) = new.inner.param_groups
    assert {name: group[name] for name in knobs} == knobs
    hand.net.load_state_dict(state["model"])
    hand.ema.model.load_state_dict(state["ema"])
    for number, parameter in enumerate(hand.net.parameters()):  # the state alone, set by hand
        hand.inner.state[parameter] = copy.deepcopy(state["optimizer"]["state"][number])
    new.n = hand.n = 3
    assert new.go(2) == hand.go(2)
    assert_equal(new.state(), hand.state())


# metrics, and too many non-finite steps


def meter_of(rows):
    meter = Meter(BATCH, 2.0)
    for row in rows:
        by_time = torch.tensor([[row[0], 0, 0, 8 * row[0]], [1, 0, 0, 2]])
        meter.add(StepMetrics(*(torch.tensor(float(x)) for x in row), by_time))
    return meter


def test_skipped_steps_are_counted_and_excluded_from_means():
    fabric = Fabric(accelerator="cpu", devices=1)
    rows = [(1, 2, 0), (math.nan, math.inf, 1), (3, 4, 0), (5, math.nan, 1)]
    figures = meter_of(rows).read(fabric, 4)
    assert (figures["train/loss"], figures["train/grad_norm"]) == (2.0, 3.0)
    assert figures["train/skipped"] == 2
    by_time = {k: v for k, v in figures.items() if k.startswith("train/loss_q")}
    assert by_time == {"train/loss_q1": 2.0, "train/loss_q4": 8.0}  # no other t was drawn
    assert "loss 2.0000, 2 steps not finite" in Meter.text(figures)


def test_no_loss_if_all_steps_were_skipped():
    fabric = Fabric(accelerator="cpu", devices=1)
    figures = meter_of([(math.nan, 1, 1)]).read(fabric, 1)
    assert not any(k.startswith(("train/loss", "train/grad")) for k in figures)
    assert all(math.isfinite(value) for value in figures.values())
    assert Meter.text(figures).startswith("1 steps not finite, ")


def test_rows_of_older_versions_are_restored():
    fabric = Fabric(accelerator="cpu", devices=1)
    meter = meter_of([(3, 4, 0)])
    meter.restore(torch.tensor([[1.0, 2.0, 0.0]]))
    figures = meter.read(fabric, 2)
    assert (figures["train/loss"], figures["train/loss_q4"]) == (2.0, 12.0)


def test_memory_of_this_process():
    def memory_mb():
        return meter_of([(1, 2, 0)]).read(Fabric(accelerator="cpu", devices=1), 1)[
            "train/memory_mb"
        ]

    before = memory_mb()
    # New pages: malloc could give some that this process has freed and still holds.
    block = mmap.mmap(-1, 200_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    torch.frombuffer(block, dtype=torch.uint8).fill_(1)
    assert memory_mb() - before == pytest.approx(200, abs=50)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(
    ("broken", "gives_up"),
    [("0111", 4), ("01101100110", 0), ("110110111", 9), ("0011100000", 5), ("0" * 9, 0)],
)
def test_only_consecutive_nonfinite_steps_count(every, broken, gives_up):
    watch = Watch(Fabric(accelerator="cpu", devices=1), 3, None, None)
    watch.every = every
    gave_up = [
        watch.too_many_nonfinite(torch.tensor(one == "1"), done, check_now=done == len(broken))
        for done, one in enumerate(broken, start=1)
        if not watch.failed_at
    ]
    assert any(gave_up) == (gives_up > 0)
    assert watch.failed_at == gives_up


# whole runs

RUN = [*TINY, "job.warmup_steps=0", "output_dir=run"]


def break_loss(monkeypatch, steps, value=math.nan, rank=0):
    """Multiply the loss of these steps, 1, 2, ..., by `value` on one rank."""
    real, step = Train.loss, 0

    def loss(self, model, *arguments):
        nonlocal step
        step += isinstance(model, _FabricModule)  # not when memory is measured
        broken = step in steps and int(os.environ.get("RANK", 0)) == rank
        return real(self, model, *arguments) * (value if broken else 1)

    monkeypatch.setattr(Train, "loss", loss)


def test_a_run_skips_a_nonfinite_step_and_logs_it(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        break_loss(patch, [3, 4])
        assert go(tmp_path, *RUN, "job.log_every=3") == 0, output_of(tmp_path)
    first, last = metrics_of(tmp_path / "run")
    assert (first["train/skipped"], last["train/skipped"]) == (1, 1)
    assert all(math.isfinite(value) for row in (first, last) for value in row.values())
    assert status_of(tmp_path / "run") == {"state": "done", "step": 6, "saved": 6}

    update, count = Step.update, itertools.count(1)
    monkeypatch.setattr(
        Step, "update", lambda *a: update(*a) if next(count) not in (3, 4) else None
    )
    assert go(tmp_path, *RUN, "output_dir=other", "job.log_every=1") == 0, output_of(tmp_path)
    assert_equal_state(state_of(tmp_path / "run", 6), state_of(tmp_path / "other", 6))
    losses = [row["train/loss"] for row in metrics_of(tmp_path / "other")]
    assert first["train/loss"] == pytest.approx(sum(losses[:2]) / 2)
    assert last["train/loss"] == pytest.approx(sum(losses[4:]) / 2)


def test_a_log_line_of_skipped_steps_has_no_null(tmp_path, monkeypatch):
    break_loss(monkeypatch, [2, 6])
    assert go(tmp_path, *RUN) == 0, output_of(tmp_path)
    rows = metrics_of(tmp_path / "run")
    assert [row["train/skipped"] for row in rows] == [0, 1, 0, 0, 0, 1]
    assert all(value is not None for row in rows for value in row.values())
    assert ["train/loss" in row for row in rows] == [True, False, True, True, True, False]
    assert output_of(tmp_path).count("steps not finite") == 1  # in the last progress line
    assert_all_finite(state_of(tmp_path / "run", 6))


@pytest.mark.slow
def test_too_many_consecutive_end_the_run_and_a_lower_rate_resumes_it(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        break_loss(patch, range(4, 1000))
        words = [*RUN, "job.max_nonfinite_steps=3", "job.save_every=1", "job.keep_checkpoints=-1"]
        assert go(tmp_path, *words) == 2
    status = status_of(tmp_path / "run")
    assert status["state"] == "failed"
    assert "loss is not finite in step 6, for image " in status["error"]
    assert " at t=" in status["error"]
    assert "job.max_nonfinite_steps=3" in status["error"]
    assert len(status["error"].splitlines()) <= 5
    assert status["error"] in output_of(tmp_path)
    assert "Traceback" not in output_of(tmp_path)
    assert status["saved"] == 5
    for step in range(1, 6):
        assert_all_finite(state_of(tmp_path / "run", step))
    assert state_of(tmp_path / "run", 4)["optimizer"]["state"][0]["step"] == 3

    lower = ["resume=run", "optimizer.lr=1e-4", "optimizer.betas=[0.8,0.9]"]
    assert go(tmp_path, *lower) == 2
    assert "allow_changes=[optimizer.lr]" in output_of(tmp_path)
    lower.append("allow_changes=[optimizer.lr,optimizer.betas]")
    assert go(tmp_path, *lower) == 0, output_of(tmp_path)
    assert "changed  optimizer.lr: 0.0002 -> 0.0001" in output_of(tmp_path)
    (group,) = state_of(tmp_path / "run", 6)["optimizer"]["param_groups"]
    assert (group["lr"], list(group["betas"])) == (1e-4, [0.8, 0.9])
    rows = metrics_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["train/lr"] for row in rows[-1:]] == [1e-4]
    assert status_of(tmp_path / "run") == {"state": "done", "step": 6, "saved": 6}


@pytest.mark.slow
def test_diverged_weights_are_never_saved(tmp_path):
    assert go(tmp_path, *RUN, "job.max_steps=2") == 0, output_of(tmp_path)
    before = (tmp_path / "run" / "checkpoints" / "step-0000002.pt").read_bytes()
    blown = ["optimizer.lr=1e39", "allow_changes=[optimizer.lr]", "job.save_every=1"]
    assert go(tmp_path, "resume=run", *blown, "job.max_steps=6") == 2
    status = status_of(tmp_path / "run")
    assert (status["state"], status["saved"]) == ("failed", 2)
    assert "not finite any more (model: " in status["error"]
    (only,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert only.read_bytes() == before
    assert go(tmp_path, "resume=run", "optimizer.lr=1e-4", *blown[1:]) == 0, output_of(tmp_path)


DDP = ["hardware=ddp", "hardware.accelerator=cpu", "hardware.precision=32-true"]


@pytest.mark.slow
def test_a_nonfinite_step_of_one_rank_is_skipped_by_all(tmp_path, monkeypatch):
    """Only the loss of rank 1 is non-finite; the gradients of the other are finite."""
    with monkeypatch.context() as patch:
        break_loss(patch, [3], rank=1)
        assert ranks(tmp_path, *RUN, *DDP, monkeypatch=monkeypatch) == [0, 0], output_of(tmp_path)
    rows = metrics_of(tmp_path / "run")
    assert [row["train/skipped"] for row in rows] == [0, 0, 1, 0, 0, 0]
    assert_all_finite(state_of(tmp_path / "run", 6))
    assert state_of(tmp_path / "run", 6)["optimizer"]["state"][0]["step"] == 5
    assert go(tmp_path, *RUN, DDP[-1], "output_dir=one", "job.max_steps=2") == 0
    one, two = metrics_of(tmp_path / "one"), rows
    for row, other in zip(one, two, strict=False):
        assert row["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4)


@pytest.mark.slow
def test_too_many_nonfinite_steps_of_one_rank_end_all(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        break_loss(patch, range(3, 1000), rank=1)
        words = [*RUN, *DDP, "job.max_nonfinite_steps=2"]
        assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [2, 2]
    status = status_of(tmp_path / "run")
    assert (status["state"], status["saved"]) == ("failed", 2)
    assert "not finite in step 4, for image " in status["error"]
    assert "and 0 more" not in status["error"]
    assert_all_finite(state_of(tmp_path / "run", 2))


def test_precision_without_a_scale_ignores_one():
    machine = Machine()
    assert isinstance(machine.learned.precision, Precision)
    assert machine.learned.state()["scaler"] == {}
    machine.learned.load(machine.learned.state() | {"scaler": scaler().state_dict()}, "x.pt")
