"""benchmarks/gpu_check.py: it must not turn out on the GPU machine that the check is broken."""

import json
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import torch
from PIL import Image
from support.base import ROOT

from ddpm.runner.config.build import build
from ddpm.runner.config.catalog import groups

sys.path.append(str(ROOT / "benchmarks"))

import gpu_check
import gpu_parts.check
from gpu_parts import aside
from gpu_parts.check import Check, Plan
from gpu_parts.comparison import compare, difference
from gpu_parts.configuration import MODES, configuration, variants
from gpu_parts.part import PATIENCE, CheckFailed, Machine, Part, Skipped, time_limit
from gpu_parts.programs import strategies
from gpu_parts.resume import differs
from gpu_parts.variants import sampling_variants, training_variants

CPU = torch.device("cpu")
TRAINED = ("model", "objective", "schedule", "weighting", "optimizer")
SAMPLED = ("sampler", "guidance", "objective", "schedule")


@pytest.fixture
def machine(tmp_path):
    return Machine(CPU, tmp_path)


@pytest.fixture
def check(machine, tmp_path):
    """Run parts: the results, and what the JSON holds of them."""

    def run(*parts, budget=60.0):
        output = tmp_path / "out.json"
        tried = Check(machine, output, budget)
        tried(Plan(parts))
        return tried.results, json.loads(output.read_text())["parts"]

    return run


def test_every_option_of_conf_is_planned_in_every_mode(machine):
    names = [part.name for part in gpu_check.all_parts(machine)]
    assert len(set(names)) == len(names)
    for what, some in (("train", TRAINED), ("sample", SAMPLED)):
        wanted = {f"{what}/{g}={o}/{mode}" for g in some for o in groups()[g] for mode in MODES}
        assert not wanted - set(names)
    assert {f"train/experiment={name}/bf16" for name in groups()["experiment"]} < set(names)
    assert {f"run/hardware={name}" for name in strategies()} < set(names)
    assert {"ddp", "fsdp"} <= set(strategies())


def test_parts_are_selected_by_name_prefix_or_pattern(machine):
    parts = gpu_check.all_parts(machine)

    def chosen(*only):
        return [part.name for part in gpu_check.select(parts, only)]

    assert chosen("train/objective=v/bf16") == ["train/objective=v/bf16"]
    assert set(chosen("train/objective=v")) == {f"train/objective=v/{mode}" for mode in MODES}
    assert len(chosen("train/objective=*/fp32")) == 2 * len(groups()["objective"])
    assert set(chosen("speed", "run/16-mixed")) == {*chosen("speed"), "run/16-mixed"}
    assert chosen("real run") == ["real run/cifar10", "real run/scores"]
    assert len(chosen()) == len(parts)


def test_boolean_keys_are_tried_with_both_values():
    assert ("objective=v", "objective.learned_variance=true") in variants("objective")
    assert ("optimizer=adam", "optimizer.fused=false") in variants("optimizer")


@pytest.mark.slow
def test_every_variant_can_be_built():
    for variant in [*training_variants(), *sampling_variants()]:
        if not variant.is_published and not variant.guide:
            job = configuration(*variant.around, *variant.words)["job"]
            build(job["diffusion"], "diffusion")


def test_failing_part_is_recorded_and_others_continue(check, capsys):
    def broken(figures):
        figures["measured"] = 3.5
        raise ZeroDivisionError("of the part\nwith a second line")

    def elsewhere(figures):
        raise Skipped("no such thing here")

    results, written = check(
        Part("run/broken", broken),
        Part("run/elsewhere", elsewhere),
        Part("run/lacks", broken, needs=("gpu",)),
        Part("run/good", lambda figures: figures.update({"images/s": 12.0})),
    )
    assert [r.status for r in results] == ["failed", "skipped", "skipped", "passed"]
    assert [part["status"] for part in written] == [r.status for r in results]
    assert written[0]["figures"] == {"measured": 3.5}
    assert "ZeroDivisionError" in written[0]["traceback"]
    assert "in broken" in written[0]["traceback"]
    table = capsys.readouterr().out
    assert "2 skipped" in table
    assert "| run/broken | failed |" in table
    assert "images/s 12" in table
    assert "failed: run/broken: ZeroDivisionError: of the part" in table
    assert "skipped: no such thing here: run/elsewhere" in table
    assert "skipped: needs a GPU: run/lacks" in table


def test_time_budget_ends_a_part_and_skips_those_that_do_not_fit(check):
    budget = 1.2 + gpu_check.MARGIN
    results, _ = check(
        Part("run/too long", lambda figures: None, seconds=3.0),
        Part("run/endless", lambda figures: time.sleep(60)),
        Part("run/late", lambda figures: None),
        budget=budget,
    )
    assert [r.status for r in results] == ["skipped"] * 3
    reasons = [r.reason for r in results]
    assert "it may take 3 s" in reasons[0]
    assert reasons[1:] == ["the budget ended while it ran", "the budget is used up"]


def test_earlier_alarm_is_restored(monkeypatch):
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with time_limit(30):
            pass
        deadline = time.monotonic() + 20
        while not rang and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)
    assert rang


def test_results_are_printed_when_the_check_is_interrupted(check, capsys):
    def interrupted(figures):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(Part("run/good", lambda figures: None), Part("run/cut", interrupted))
    assert "| run/good | passed |" in capsys.readouterr().out


def test_hanging_part_fails_before_the_budget_ends(check, monkeypatch):
    monkeypatch.setitem(PATIENCE, "cpu", 0.2)
    results, _ = check(Part("run/hangs", lambda figures: time.sleep(60)))
    assert (results[0].status, results[0].reason) == ("failed", "it hung, and was given up")


@pytest.mark.slow
def test_small_parts_pass_on_the_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    only = ["train/objective=v/bf16", "sample/sampler=heun/bf16"]
    only += ["not finite/optimizer=adam/by the host", "speed/ho 128/fp32", "loop/ho 128/bf16"]
    arguments = ["--device", "cpu", "--only", *only, "real run"]
    assert gpu_check.main([*arguments, "--output", "there/out.json"]) == 0
    parts = json.loads((tmp_path / "there" / "out.json").read_text())["parts"]
    assert [part["status"] for part in parts] == ["passed"] * 5 + ["skipped"] * 2
    for part in parts[:2]:
        assert 0 < part["figures"]["difference"] < part["figures"]["allowed"]
    speed, loop = (part["figures"] for part in parts[3:5])
    assert all(speed["rows"]["ours"][f"{what} images/s"] > 0 for what in ("training", "sampling"))
    assert loop["images/s"] > 0
    assert loop["kernels a step"] > 100
    assert all("--cifar" in part["reason"] for part in parts[5:])
    table = capsys.readouterr().out
    assert "| a step of training | bf16 |" in table
    assert "| speed/ho 128/fp32 | ours |" in table
    assert "- loop/ho 128/bf16: reading and noise: " in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


@pytest.mark.slow
def test_wrong_results_of_a_device_fail(machine, check, monkeypatch):
    from ddpm.models.convnet import ConvNet

    forward, calls = ConvNet.forward, []

    def wrong_the_second_time(self, *arguments):
        calls.append(arguments)
        return forward(self, *arguments) * (1.0 if len(calls) == 1 else 1.01)

    monkeypatch.setattr(ConvNet, "forward", wrong_the_second_time)
    parts = gpu_check.select(gpu_check.all_parts(machine), ["train/weighting=uniform/fp32"])
    results, _ = check(*parts)
    assert results[0].status == "failed"
    assert results[0].figures["difference"] > results[0].figures["allowed"]


def test_single_wrong_tensor_fails_and_rounding_near_zero_passes():
    torch.manual_seed(0)
    sizes = {"model.large": 1000, "model.small": 3, "loss": 1}
    good = {name: torch.randn(size) for name, size in sizes.items()}
    good |= {"model.zero": torch.zeros(5), "gradient norm": torch.tensor(1e6)}
    assert difference(good, good)[1] == 0
    for name in ("model.small", "loss"):
        worst, by = difference(good | {name: good[name] * 1.1}, good)
        assert worst == name
        assert by > 0.05
    assert difference(good | {"model.zero": torch.full((5,), 1e-6)}, good)[1] < 1e-4
    broken = good | {"model.large": torch.full((1000,), torch.nan)}
    assert difference(broken, good) == ("model.large", float("inf"))
    with pytest.raises(CheckFailed, match=r"model\.large"):
        compare(broken, good, 0.1, {})


def test_state_comparison_is_exact():
    state = {"model.weight": torch.ones(4), "step": torch.tensor(3.0)}
    assert differs(state, {k: v.clone() for k, v in state.items()}) == 0
    nudged = state | {"model.weight": torch.tensor([1, 1, 1, 1 + 2**-20])}
    assert 0 < differs(state, nudged) < 1e-5
    with pytest.raises(CheckFailed, match=r"model\.weight"):
        differs(state, {"step": state["step"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "trian/"], "--list shows their names"), ([], "--device cpu tries the parts")],
    ids=["no such part", "no GPU"],
)
def test_invalid_arguments_are_refused(arguments, message):
    arguments = [*arguments, "--device", "cpu"] if arguments else arguments
    with pytest.raises(SystemExit, match=message):
        gpu_check.main(arguments)


@pytest.mark.slow
def test_remaining_parts_run_in_a_new_process_after_a_gpu_error(
    machine, check, monkeypatch, tmp_path
):
    def broken(figures):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu_parts.check, "is_lost", lambda machine: True)
    names = ["train/objective=v/fp32", "not finite/optimizer=adam/on the device"]
    rest = gpu_check.select(gpu_check.all_parts(machine), names)
    results, written = check(Part("run/broken", broken), *rest, budget=200)
    assert [result.status for result in results] == ["failed", "passed", "skipped"]
    assert [part["name"] for part in written] == ["run/broken", *names]
    assert results[1].figures["difference"] == 0


@pytest.mark.slow
def test_groups_run_in_parallel_and_prepared_parts_wait(machine, tmp_path):
    ran = []
    names = ["train/objective=v/fp32", "not finite/optimizer=adam/on the device"]
    every = gpu_check.all_parts(machine)
    waiting = gpu_check.select(every, ["speed/ho 128/fp32"])
    plan = Plan(
        here=[Part("run/it", lambda figures: ran.append("run"))],
        beside=[gpu_check.select(every, names)],
        timed=[Part("speed/it/bf16", lambda figures: ran.append("speed"))],
        prepared=[waiting],
        last=[Part("real run/it", lambda figures: ran.append("real run"))],
    )
    check = Check(machine, tmp_path / "out.json", 250)
    check(plan)
    assert ran == ["speed", "run", "real run"]
    found = {result.name: result.status for result in check.results}
    assert list(found) == ["speed/it/bf16", "run/it", *names, waiting[0].name, "real run/it"]
    assert list(found.values()) == ["passed", "passed", "passed", "skipped", "passed", "passed"]
    assert all(process.process.poll() is not None for process in check.processes)


def test_dying_process_fails_only_its_current_part(machine, monkeypatch):
    monkeypatch.setattr(aside, "SCRIPT", machine.work / "dies.py")
    first, second = Part("run/a", None), Part("run/b", None)
    result = {"name": "run/a", "status": "passed", "seconds": 1.0}
    (machine.work / "dies.py").write_text(
        "import json, os, sys\n"
        "output = sys.argv[sys.argv.index('--output') + 1]\n"
        f"json.dump({{'parts': [{result}]}}, open(output, 'w'))\n"
        "print('about to die', flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    process = aside.Aside(machine, "x", [first, second, Part("run/c", None)], time.monotonic() + 60)
    results = process.results()
    assert [result.status for result in results] == ["passed", "failed", "skipped"]
    assert "status -9" in results[1].reason
    assert "about to die" in results[1].traceback


@pytest.mark.slow
def test_real_run_trains_within_its_time_and_draws_and_scores_samples(tmp_path):
    generator = np.random.default_rng(0)
    with tarfile.open(tmp_path / "few.tar.xz", "w:xz") as archive:
        names = [f"train/{('cat', 'dog')[n % 2]}/{n}.png" for n in range(200)]
        for name in (*names, "test/cat/0.png"):
            file = tmp_path / "one.png"
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
            archive.add(file, f"few/{name}")
    arguments = ["--device", "cpu", "--only", "real run", "--cifar", str(tmp_path / "few.tar.xz")]
    arguments += ["--run-seconds", "5", "--samples", "10", "--output", str(tmp_path / "out.json")]
    assert gpu_check.main(arguments) == 0
    part, scored = json.loads((tmp_path / "out.json").read_text())["parts"]
    assert [part["status"], scored["status"]] == ["passed"] * 2
    figures = part["figures"]
    assert figures["steps"] >= 10
    assert figures["images/s"] == pytest.approx(figures["steps/s"] * figures["batch"])
    assert str(figures["steps"] // 10 * 10) in figures["loss"]
    assert 0 < figures["checkpoint MB"] < 5
    assert Image.open(tmp_path / "out-grid.png").size[0] >= 32
    figures = scored["figures"]
    assert figures["samples"] == 10
    assert figures["s per 1,000 samples"] == pytest.approx(100 * figures["seconds"])
    assert {"fd", "kd"} <= {name.split("_")[0] for name in figures}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_twentieth_of_all_parts_passes_on_the_cpu(machine, tmp_path):
    """All of them, with --budget 5300, take more than an hour."""
    names = [part.name for part in gpu_check.all_parts(machine)][::20]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--device", "cpu"]
    command += ["--budget", "1100", "--only", *names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert len(parts) == len(names)
    reasons = {part["reason"].split(",")[0] for part in parts if part["status"] == "skipped"}
    assert reasons <= {"needs a GPU", "needs --cifar"}
    assert sum(part["status"] == "passed" for part in parts) >= len(names) // 2
