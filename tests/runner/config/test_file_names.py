"""Folders whose names are made of words of the command line."""

import pytest
from support.base import TINY

from ddpm.runner.config.paths import LONGEST_MADE, file_name


@pytest.mark.parametrize("letter", ["a", "é", "ж"])
def test_long_names_are_shortened_and_stay_distinct(letter, tmp_path):
    cut = {file_name(f"7-{letter * 150}{middle}{letter * 150}-end") for middle in "xyz"}
    assert len(cut) == 3
    for name in cut:
        (tmp_path / name).mkdir()
        assert len(name.encode()) <= LONGEST_MADE
        assert name.startswith("7-")
        assert name.endswith("-end")


def test_run_folder_with_the_longest_name_can_be_made(tmp_path):
    from ddpm.runner.runs import run_dir

    config = {"choices": {"model": "unet", "data": "digits"}, "model": {}, "data": {}}
    for name in ("n" * 255, "é" * 127, "🙂" * 63):
        made = run_dir.create(tmp_path / name, config, unique=False)
        assert (made.name, (made / "config.yaml").is_file()) == (name, True)


@pytest.mark.slow
def test_sweep_folders_may_be_named_by_override_dirname(run, tmp_path):
    words = ["job.max_steps=1", "job.num_samples=1", "seed=1,2"]
    words.append(f"allow_changes=[{','.join(['optimizer.lr'] * 20)}]")
    subdir = "hydra.sweep.subdir='${hydra:job.num}-${hydra:job.override_dirname}'"
    for _ in range(2):  # they are found again
        status, out, err = run("-m", "sweep=s", *TINY, *words, subdir)
        assert (status, err) == (0, "")
    folders = [path.parent.name for path in tmp_path.glob("outputs/sweep/s/*/config.yaml")]
    assert sorted(name[:2] for name in folders) == ["0-", "1-"]
    assert max(len(name) for name in folders) <= LONGEST_MADE
    assert out.count("was done before") == 2
