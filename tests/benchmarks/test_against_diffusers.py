"""benchmarks/against_diffusers.py: the three that are compared do the same work."""

import json
import sys

import pytest
import torch
from support.base import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import against_diffusers
import contenders
from contenders import COMPILED, OURS, STOCK, STOCK_FP32, TUNED
from diffusers_loop import unet
from gpu_parts.against_cpu import stir
from settings import NETWORKS, Setting

pytest.importorskip("diffusers")

CPU = torch.device("cpu")
WORDS = (*NETWORKS["digits"], "model.widths=[8,16]", "model.groups=2")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_all_contenders_have_equal_weights_and_outputs(dtype):
    setting = Setting(WORDS, 2, dtype, CPU)
    ours, *theirs = [contenders.make(name, setting) for name in (OURS, STOCK, TUNED, STOCK_FP32)]
    first = ours.network.state_dict()
    for one in theirs:
        assert one.network.state_dict().keys() == first.keys()
        assert all(torch.equal(first[k], v) for k, v in one.network.state_dict().items())
    stir(ours.network)
    x_t, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        expected = ours.network(x_t, t)
        for one in theirs:
            one.network.load_state_dict(ours.network.state_dict())
            torch.testing.assert_close(one.network(x_t, t).sample, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [OURS, STOCK, TUNED])
def test_training_step_changes_weights_and_sampling_reaches_x_0(name):
    setting = Setting(WORDS, 2, "fp32", CPU)
    one = contenders.make(name, setting)
    before = {k: v.clone() for k, v in one.network.state_dict().items()}
    for _ in range(2):  # the first may be at a learning rate of zero
        one.train()
    after = one.network.state_dict()
    assert not torch.equal(before["conv_out.weight"], after["conv_out.weight"])
    assert all(v.isfinite().all() for v in after.values())
    x_t = [one.sample() for _ in range(2)]
    assert x_t[0].shape == (2, 1, 16, 16)
    assert not torch.equal(*x_t)
    assert not x_t[0].requires_grad


@pytest.mark.parametrize(("name", "is_tuned"), [(STOCK, False), (TUNED, True), (OURS, True)])
def test_only_the_stock_contender_is_contiguous(name, is_tuned):
    one = contenders.make(name, Setting(WORDS, 2, "fp32", CPU))
    weight = one.network.mid_block.resnets[0].conv1.weight
    assert weight.is_contiguous() != is_tuned
    assert weight.is_contiguous(memory_format=torch.channels_last) == is_tuned


def test_flop_count_is_equal_for_both_networks():
    setting = Setting(WORDS, 2, "fp32", CPU)
    ours, theirs = (contenders.make(name, setting) for name in (OURS, TUNED))
    assert contenders.flops(ours, setting) == contenders.flops(theirs, setting) > 1e6


def test_a_ratio_is_taken_within_each_round():
    def one(ours, theirs):
        return {OURS: {"training": ours}, STOCK: {"training": theirs}}

    rounds = [one(2.0, 1.0), one(30.0, 10.0), one(400.0, 100.0)]  # the machine is freed bit by bit
    assert contenders.ratio(rounds, OURS, STOCK, "training") == (3.0, 2.0, 4.0)


def test_eager_runs_are_compared_with_eager_runs():
    names = [STOCK_FP32, STOCK, TUNED, OURS, TUNED + COMPILED, OURS + COMPILED]
    pairs = against_diffusers.pairs(names)
    assert (OURS, STOCK_FP32) in pairs
    assert (OURS, TUNED + COMPILED) not in pairs
    assert {other for name, other in pairs if name == OURS + COMPILED} == set(names) - {
        OURS,
        OURS + COMPILED,
    }


def test_table_and_json_hold_throughput_and_ratios(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(NETWORKS, "digits", WORDS)
    file = tmp_path / "out.json"
    arguments = ["--network", "digits", "--batch", "2", "--rounds", "2", "--seconds", "0.001"]
    against_diffusers.main([*arguments, "--json", str(file)])
    written = json.loads(file.read_text())
    assert written["about"]["batch"] == 2
    table = capsys.readouterr().out
    for name in (STOCK, TUNED, OURS):
        assert f"| {name} |" in table
        assert all(one[name]["sampling"] > 0 for one in written["rounds"])
    found = sorted(one[OURS]["training"] / one[STOCK]["training"] for one in written["rounds"])
    ratio = written["ratios"][f"{OURS} / {STOCK}"]["training"]
    assert [ratio["least"], ratio["most"]] == pytest.approx(found)
    assert f"| {OURS} / {TUNED} |" in table


def test_invalid_arguments_are_refused(capsys, monkeypatch):
    for arguments in (["--threads", "0"], ["--network", "unet"], ["--dtype", "fp16"]):
        with pytest.raises(SystemExit):
            against_diffusers.main(arguments)
        assert arguments[0] in capsys.readouterr().err
    monkeypatch.setattr(contenders, "has_diffusers", lambda: False)
    with pytest.raises(SystemExit, match="pip install diffusers"):
        against_diffusers.main([])
    with pytest.raises(ValueError, match="model=resunet"):
        unet(Setting(("model=unet", "data=digits"), 1, "fp32", CPU))
