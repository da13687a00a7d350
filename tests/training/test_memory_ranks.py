"""job.recompute=true and job.accumulate_grad_batches=auto with more than one process."""

import json

import pytest
from support.crash import go, output_of
from support.rank_runs import CPU, FULL, RUN, SMALL, assert_close
from support.ranks import ranks

from ddpm.training import expected_memory as planning


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "strategy"),
    [
        ("resunet", "ddp"),
        pytest.param("unet", "fsdp", marks=pytest.mark.slow),
        pytest.param("resunet", "fsdp", marks=pytest.mark.slow),
    ],
)
def test_ranks_agree_on_the_largest_accumulation(model, strategy, tmp_path, monkeypatch):
    """The first rank has memory for its whole share, the second for half of it."""
    words = [*SMALL[model], "optimizer.lr=2e-5"]
    assert go(tmp_path, *RUN[:-1], "output_dir=one", "hardware=cpu", FULL, *words) == 0
    monkeypatch.setattr(
        planning,
        "_fits",
        lambda probe, estimate, accumulate, free, tries: accumulate > probe.fabric.global_rank,
    )
    words += [
        "job.accumulate_grad_batches=auto",
        "job.recompute=true",
        f"hardware={strategy}",
        *CPU,
    ]
    assert ranks(tmp_path, *RUN, *words, monkeypatch=monkeypatch) == [0, 0], output_of(tmp_path)
    assert "for 2 images at a time, 2 times a step" in output_of(tmp_path)
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    assert about["chosen"] == {"accumulate": 2}
    assert_close(tmp_path / "one", tmp_path / "run", rtol=1e-3)
