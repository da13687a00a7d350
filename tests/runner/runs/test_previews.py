"""Where the pictures of a run lie, and which of them are previews."""

from ddpm.runner.runs import previews


def test_previews_are_found_in_the_order_of_their_steps(tmp_path):
    (tmp_path / "samples").mkdir()
    assert previews.by_step(tmp_path / "missing") == previews.by_step(tmp_path) == {}
    files = {step: previews.file(tmp_path, step) for step in (20, 500, 1_000_000, 2_500_000)}
    for file in reversed(files.values()):
        file.touch()
    for name in ("000000.png", "step-.png", "step-20.png.part", "step-5.npy", "step-1e3.png"):
        (tmp_path / "samples" / name).touch()
    assert list(previews.by_step(tmp_path).items()) == list(files.items())
    assert set(previews.drawn(tmp_path)) - set(files.values()) == {
        tmp_path / "samples" / name for name in ("000000.png", "step-.png", "step-1e3.png")
    }
