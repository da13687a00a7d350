"""benchmarks/gpu_check.py: what it measures, and in which order it does so on a GPU machine."""

import json
import sys
import threading
import time
import warnings

import pytest
import torch
from support.base import ROOT

from ddpm.runner.runs import run_dir

sys.path.append(str(ROOT / "benchmarks"))

import contenders
import gpu_check
import settings
from gpu_parts import memory, real_run, speed
from gpu_parts.check import Check, Plan, planned
from gpu_parts.configuration import configuration
from gpu_parts.part import PATIENCE, Machine, Part, Skipped, run_part
from gpu_parts.peak import peak
from gpu_parts.program import RUN, Runs
from gpu_parts.report import tables
from gpu_parts.resume import NOT_DETERMINISTIC
from gpu_parts.step_loop import WAITS, busy, idle

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path):
    return Machine(CPU, tmp_path)


@pytest.mark.slow
def test_measurements_run_alone_on_a_gpu_and_compilation_is_prepared(machine):
    parts = gpu_check.all_parts(machine)
    plan = planned(parts, gpu_check.beside(parts))
    assert sorted(part.name for part in plan.parts) == sorted(part.name for part in parts)
    here = {part.name for part in plan.here}
    assert {"train/objective=v/bf16", "run/hardware=ddp"} < here
    assert not any(name.endswith("compiled") or name.startswith("sample/") for name in here)
    assert plan.here[-1].name.startswith("train/experiment=")
    assert [part.name for part in plan.last] == ["real run/cifar10", "real run/scores"]
    assert all(part.name.split("/")[0] in ("speed", "loop") for part in plan.timed)
    for group in plan.prepared:
        assert len({part.name.split("/")[1] for part in group}) == 1
        assert all(part.name.endswith("compiled") and part.waits for part in group)
    cells = [group[0].name for group in plan.prepared]
    assert cells[0] == "speed/ho 512/bf16 compiled"


@pytest.mark.slow
def test_first_parts_leave_time_for_compiled_parts_and_the_real_run(machine, tmp_path):
    machine = Machine(CPU, tmp_path, run_seconds=40)
    ran, deadlines = [], []
    check = Check(machine, tmp_path / "out.json", 100)
    run, began = check.run, time.monotonic()

    def noted(parts, deadline):
        deadlines.append(deadline - began)
        run(parts, deadline)

    def part(name):
        return Part(name, lambda figures: ran.append(name))

    check.run = noted
    timed, last = [part("speed/it/fp32")], [part("real run/it")]
    check(Plan([part("run/it")], timed=timed, prepared=[[]], last=last))
    assert ran == ["speed/it/fp32", "run/it", "real run/it"]
    first, here, end = deadlines
    assert first == here
    assert end - here == pytest.approx(40 + 100 / 3, abs=2)
    assert end > 90


def test_process_waits_for_its_turn_on_the_gpu(tmp_path):
    machine = Machine(CPU, tmp_path, turn=tmp_path / "turn")
    timer = threading.Timer(0.2, machine.turn.touch)
    timer.start()
    machine.wait_for_turn()
    assert machine.turn.exists()
    machine.wait_for_turn()
    Machine(CPU, tmp_path).wait_for_turn()
    timer.join()


def test_waiting_part_is_not_reported_as_hanging(machine, monkeypatch):
    monkeypatch.setitem(PATIENCE, "cpu", 0.1)
    for waits, status in ((True, "passed"), (False, "failed")):
        part = Part("speed/it/bf16", lambda figures: time.sleep(0.3), waits=waits)
        assert run_part(part, machine, time.monotonic() + 60).status == status


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA A10G", None),
        ("NVIDIA H20", None),
        ("Tesla V100-SXM2-16GB", None),
        ("AMD EPYC", None),
    ],
)
def test_peak_flops_are_found_by_gpu_name(name, tflops):
    assert peak(name) == (tflops and tflops * 1e12)


def test_overlapping_kernels_are_counted_once():
    spans = [(10.0, 20.0), (15.0, 30.0), (16.0, 17.0), (40.0, 50.0)]
    assert busy(spans) == 30
    assert idle(spans) == pytest.approx(10 / 40)
    assert idle([(1.0, 2.0), (2.0, 3.0)]) == 0
    assert idle([]) == 1


def test_synchronizing_calls_are_distinguished():
    waiting = ["cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy"]
    others = ["cudaMemcpyAsync", "cudaLaunchKernel", "cudaStreamWaitEvent", "cudaEventRecord"]
    assert [name for name in waiting + others if WAITS.search(name)] == waiting


def test_mfu_is_three_forward_passes_over_the_peak():
    rounds = [{"ours": {"training": 100.0, "sampling": 400.0}}]
    found = speed.speeds(rounds, "ours", flops=1e9, best=1e12)
    assert found["training MFU"] == pytest.approx(0.3)
    assert found["sampling MFU"] == pytest.approx(0.4)
    assert "training MFU" not in speed.speeds(rounds, "ours", flops=1e9, best=None)


def test_missed_targets_are_shown_and_fail_nothing(machine, capsys):
    def measured(figures):
        figures["rows"] = {"ours": {"training images/s": 12.0}}
        figures["ratios"] = {"ours / diffusers, tuned": {"training": (1.4, 1.2, 1.5)}}
        figures["targets"] = [
            speed.target("training", 1.4, 1.3, "x"),
            speed.target("GPU idle", 4.0, 3.0, " %", most=True),
        ]

    result = run_part(Part("speed/it/bf16", measured), machine, float("inf"))
    assert result.status == "passed"
    text = tables(machine, [result], 1.0, 2.0)
    assert "| speed/it/bf16 | ours | 12 |" in text
    assert "| ours / diffusers, tuned | 1.4x (1.2x to 1.5x) |" in text
    assert "training: 1.4x, at least 1.3x wanted: met" in text
    assert "GPU idle: 4 %, at most 3 % wanted: NOT met" in text


def test_measurement_works_without_diffusers(machine, monkeypatch):
    monkeypatch.setattr(contenders, "has_diffusers", lambda: False)
    figures = {}
    speed.check_speed(machine, speed.CELLS[0], "fp32", figures)
    assert list(figures["rows"]) == ["ours"]
    assert figures["ratios"] == {}
    assert figures["targets"] == []
    assert "not installed" in figures["not compared"]


def test_network_larger_than_memory_is_skipped(machine, monkeypatch, tmp_path):
    calls = []

    def short(name, setting):
        calls.append(name)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(contenders, "make", short)
    monkeypatch.setattr(speed, "PAUSE", 0.0)
    monkeypatch.setattr(speed, "SHORTAGES", 2)
    setting = speed.CELLS[0].setting(machine, "bf16")
    with pytest.raises(Skipped, match="a batch of 2 does not fit"):
        speed.prepared(machine, "ours", setting, {})
    assert len(calls) == 1
    beside = Machine(CPU, tmp_path, turn=tmp_path / "turn")  # other processes hold memory, too
    with pytest.raises(Skipped):
        speed.prepared(beside, "ours", setting, {})
    assert len(calls) == 1 + speed.SHORTAGES + 1


def test_nondeterministic_operations_are_named():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    finally:
        torch.use_deterministic_algorithms(False)
    texts = [str(warning.message) for warning in caught]
    assert [name for text in texts for name in NOT_DETERMINISTIC.findall(text)] == ["put_"]


def test_long_loss_curve_is_reduced_to_means():
    curve = {10 * n: float(n) for n in range(1, 101)}
    found = real_run.thinned(curve, 4)
    assert found == {250: 13.0, 500: 38.0, 750: 63.0, 1000: 88.0}
    assert real_run.thinned({5: 1.0}, 4) == {5: 1.0}
    assert real_run.thinned({}, 4) == {}


def test_invalid_arguments_are_refused():
    with pytest.raises(SystemExit, match="no such folder or archive"):
        gpu_check.main(["--device", "cpu", "--cifar", "not/there.tar.xz"])


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["ho", "celeba64", "ho256"])
def test_network_settings_are_kept_on_other_data(name):
    words = settings.NETWORKS[name]
    before, after = configuration(*words), configuration(*settings.on_digits(words))
    assert after["data"]["_target_"].endswith("Digits")
    assert after["model"] == before["model"]


def test_expected_memory_is_compared_with_the_peak(tmp_path):
    run = Runs(Machine(CPU, tmp_path)).train("memory")
    run.end = lambda: 0
    run.run.mkdir(parents=True)
    run.log.write_text("done")
    rows = [{"step": n, "train/memory_mb": mb} for n, mb in ((1, 900.0), (2, 1000.0))]
    (run.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for expected, verdict in ((1120.0, "12 %, at most 15 % wanted: met"), (800.0, "NOT met")):
        run_dir.note(run.run, expected_memory_mb=expected)
        figures = {}
        memory.check_memory(Machine(torch.device("cuda"), tmp_path), run, figures)
        assert (figures["expected MB"], figures["measured MB"]) == (expected, 1000.0)
        assert figures["targets"][0].endswith(verdict)


def test_real_run_on_a_gpu_trains_the_network_of_ho_et_al(tmp_path):
    gpu = Machine(torch.device("cuda"), tmp_path)
    run = real_run.RealRun(gpu, tmp_path)
    words = run.trained.command[run.trained.command.index(str(RUN)) + 1 :]
    found = configuration(*words)
    assert found["model"] == configuration("experiment=ho2020_cifar10")["model"]
    assert found["data"]["_target_"].endswith("Folder")
    assert found["data"]["root"] == str(tmp_path)
    assert found["job"]["batch_size"] == 128
    assert found["sampler"]["variance"] == "auto"


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", list(memory.CASES))
def test_memory_is_measured_for_the_named_networks_on_a_gpu(name, tmp_path):
    case = memory.CASES[name]._replace(more=())
    one = memory.program(Runs(Machine(torch.device("cuda"), tmp_path)), name, case)
    words = one.command[one.command.index(str(RUN)) + 1 :]
    found = configuration(*words)
    assert found["model"] == configuration(*case.words)["model"]
    assert found["job"]["batch_size"] == case.batch
    assert found["job"]["sample_every_epochs"] is None
