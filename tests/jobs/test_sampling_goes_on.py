"""A job that draws pictures, stopped anywhere, makes the rest by the same command.

Every file then equals that of an uninterrupted run, byte for byte. Covered are a job that dies
half-way, whose folder is given or found; folders of other jobs; a signal between two batches;
several processes. Covered elsewhere: incomplete pictures, as each gets its name when it is complete
(test_images.py), and samples of unknown weights, as file, step and kind of weights are printed and
stored in config.yaml (test_run.py).
"""

import contextlib
import json
import os
import shutil
import signal

import pytest
import torch
from PIL import Image
from support.crash import TINY, go, output_of
from support.runs import files_of, process, status_of

from ddpm.images import load_png
from ddpm.runner.runs import run_dir

# 7 images in batches of 3, of noise and labels, so that nothing is the same by chance.
COMMON = ["hardware=cpu", "tracker=local", "sampler.eta=1"]
JOBS = {
    "sample": [
        *("job=sample", "job.num_samples=7", "job.batch_size=3", "job.first_seed=2"),
        *("job.labels=[3,1,8]", "guidance=classifier_free", *COMMON),
    ],
    "interpolate": [
        *(
            "job=interpolate",
            "job.num_samples=3",
            "job.num_mixtures=3",
            "job.t=300",
            "job.labels=2",
        ),
        *COMMON,
    ],
    "inpaint": [
        *("job=inpaint", "job.num_samples=7", "job.batch_size=3", "job.mask=left"),
        *("job.resamples=2", "job.jump_length=1", "job.labels=[4,5]", *COMMON),
    ],
}


def command(job, home):
    """The words of a job; pictures and checkpoint are named by where they really are."""
    words = [*JOBS[job], f"checkpoint={(home / 'run').resolve()}"]
    return [*words, f"job.image={(home / 'a.png').resolve()}"] if job == "inpaint" else words


FILES = {"sample": 7, "interpolate": 9, "inpaint": 7}
BATCH = 3  # files of one
NOT_COMPARED = {"about.json", "config.yaml", "run.lock", "status.json"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run whose weights have moved, and a picture, not to be changed by tests."""
    home = tmp_path_factory.mktemp("trained")
    words = ["optimizer.lr=1e-2", "job.warmup_steps=0", "data.conditional=true"]
    assert go(home, *TINY, *words, "sampler.steps=4", "output_dir=run") == 0, output_of(home)
    Image.linear_gradient("L").resize((16, 16)).save(home / "a.png")
    return home


@pytest.fixture
def home(trained, tmp_path):
    (tmp_path / "run").symlink_to(trained / "run")
    (tmp_path / "a.png").symlink_to(trained / "a.png")
    return tmp_path


@pytest.fixture(scope="module")
def uninterrupted(trained, tmp_path_factory):
    """The folder that each job writes without interruption."""
    made = {}

    def get(job):
        if job not in made:
            home = tmp_path_factory.mktemp(job)
            for name in ("run", "a.png"):
                (home / name).symlink_to(trained / name)
            assert go(home, *command(job, home), "output_dir=s") == 0, output_of(home)
            made[job] = home / "s"
        return made[job]

    return get


def bytes_of(folder):
    return {name: (folder / name).read_bytes() for name in files_of(folder) - NOT_COMPARED}


def times_of(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "samples").iterdir()}


def assert_whole(folder, job, uninterrupted):
    assert status_of(folder)["state"] == "done"
    assert bytes_of(folder) == bytes_of(uninterrupted(job))
    extra = {"sample": {"grid.png", "denoising.gif", "labels.json"}, "interpolate": {"strip.png"}}
    extra["inpaint"] = {"grid.png", "labels.json"}
    assert files_of(folder) == NOT_COMPARED | extra[job] | {
        f"samples/{path.name}" for path in (folder / "samples").iterdir()
    }
    assert len(list((folder / "samples").iterdir())) == FILES[job]


# killed

SLOW = pytest.mark.slow
PLACES = [
    ("sample", "sample.saved:5"),
    ("sample", "run.grid"),
    *(pytest.param("sample", place, marks=SLOW) for place in ("run.filled", "sample.saved:2")),
    ("interpolate", "sample.saved:4"),
    ("inpaint", "sample.saved:5"),
    *(pytest.param("sample", f"sample.saved:{k}", marks=SLOW) for k in (1, 3, 4, 6, 7)),
    *(pytest.param("interpolate", f"sample.saved:{k}", marks=SLOW) for k in (1, 2, 3, 9)),
    *(pytest.param("inpaint", f"sample.saved:{k}", marks=SLOW) for k in (1, 3, 6, 7)),
    *(pytest.param(job, "run.grid", marks=SLOW) for job in ("interpolate", "inpaint")),
    *(pytest.param(job, "run.created", marks=SLOW) for job in ("interpolate", "inpaint")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("job", "place"), PLACES)
def test_killed_sampling_continues_by_the_same_command(job, place, home, uninterrupted):
    words = [*command(job, home), "output_dir=s"]
    assert go(home, *words, crash=place) == -9, output_of(home)
    there = times_of(home / "s") if (home / "s" / "samples").is_dir() else {}
    assert go(home, *words) == 0, output_of(home)
    assert_whole(home / "s", job, uninterrupted)
    now = times_of(home / "s")
    complete = len(there) // BATCH * BATCH  # what lies in a whole batch is not drawn again
    for name in sorted(there)[:complete]:
        assert now[name] == there[name]


@SLOW
def test_sampling_killed_repeatedly_finishes(home, uninterrupted):
    words = [*command("sample", home), "output_dir=s"]
    for place in ("sample.saved:1", "sample.saved:2", "sample.saved:4", "sample.saved:2"):
        assert go(home, *words, crash=place) == -9, output_of(home)
    assert go(home, *words) == 0, output_of(home)
    assert_whole(home / "s", "sample", uninterrupted)


@pytest.mark.slow
def test_missing_samples_are_drawn_again(home, uninterrupted):
    """As if it had been killed between any two files."""
    words = [*command("sample", home), "output_dir=s"]
    shutil.copytree(uninterrupted("sample"), home / "s")
    before = times_of(home / "s")
    for missing in ("denoising.gif", "samples/000006.png", "grid.png", "labels.json"):
        (home / "s" / missing).unlink()
    run_dir.write_status(home / "s", "running")
    assert go(home, *words) == 0, output_of(home)
    assert_whole(home / "s", "sample", uninterrupted)
    again = {name for name, time in times_of(home / "s").items() if time != before[name]}
    assert again == {f"{seed:06d}.png" for seed in range(2, 8)}, "the film's batch, and the second"


# the folder is found


def folders(home, job="sample"):
    parent = home / "outputs" / job / "convnet-digits"
    return sorted(path for path in parent.iterdir())


@pytest.mark.quick(1)
@pytest.mark.parametrize("place", ["run.created", "sample.saved:4"])
def test_an_unfinished_run_is_found_by_its_configuration(place, home, uninterrupted):
    assert go(home, *command("sample", home), crash=place) == -9
    assert go(home, *command("sample", home)) == 0, output_of(home)
    (folder,) = folders(home)
    assert_whole(folder, "sample", uninterrupted)
    # A finished one is not: the same command makes the same pictures in a folder of its own.
    assert go(home, *command("sample", home)) == 0, output_of(home)
    assert len(folders(home)) == 2
    assert all(bytes_of(path) == bytes_of(uninterrupted("sample")) for path in folders(home))


@pytest.mark.slow
def test_unnamed_folder_is_not_continued(home, uninterrupted):
    """Killed before the folder got its name: the next run does not live in the nameless one."""
    assert go(home, *command("sample", home), crash="run.filled") == -9
    (nameless,) = folders(home)
    assert nameless.name.startswith(".")
    assert go(home, *command("sample", home)) == 0, output_of(home)
    (folder,) = [path for path in folders(home) if not path.name.startswith(".")]
    assert_whole(folder, "sample", uninterrupted)


@pytest.mark.slow
def test_sampling_of_another_config_or_checkpoint_is_not_continued(home, trained, uninterrupted):
    (home / "run").unlink()
    shutil.copytree(trained / "run", home / "run")
    assert go(home, *command("sample", home), crash="sample.saved:2") == -9
    (begun,) = folders(home)
    before = bytes_of(begun)
    for change in ("job.first_seed=9", "guidance.scale=3"):
        assert go(home, *command("sample", home), change, crash="sample.saved:1") == -9
    assert len(folders(home)) == 3
    assert go(home, "resume=run", "job.max_steps=7") == 0, output_of(home)
    assert go(home, *command("sample", home)) == 0, output_of(home)
    assert len(folders(home)) == 4
    assert bytes_of(begun) == before
    (home / "run" / "checkpoints" / "step-0000007.pt").unlink()
    assert go(home, *command("sample", home)) == 0, output_of(home)
    assert_whole(begun, "sample", uninterrupted)
    assert len(folders(home)) == 4


@pytest.mark.slow
def test_running_sampling_is_not_continued(home):
    assert go(home, *command("sample", home), crash="sample.saved:2") == -9
    (begun,) = folders(home)
    before = bytes_of(begun)
    with run_dir.lock(begun):
        assert go(home, *command("sample", home)) == 0, output_of(home)
        assert go(home, *command("sample", home), f"output_dir={begun}") == 2
        assert f"this run is being worked on by process {os.getpid()} on " in output_of(home)
    assert len(folders(home)) == 2
    assert bytes_of(begun) == before


# given folders


def test_finished_sampling_is_not_changed(home, uninterrupted):
    words = [*command("sample", home), "output_dir=s"]
    shutil.copytree(uninterrupted("sample"), home / "s")
    before = times_of(home / "s")
    assert go(home, *words) == 0
    assert output_of(home).splitlines()[-1] == "done     s/grid.png and denoising.gif beside it"
    assert_whole(home / "s", "sample", uninterrupted)
    assert times_of(home / "s") == before
    assert (home / "s" / "config.yaml").read_bytes() == (
        uninterrupted("sample") / "config.yaml"
    ).read_bytes()


def test_truncated_sample_is_drawn_again(home, uninterrupted):
    shutil.copytree(uninterrupted("sample"), home / "s")
    for name in ("000002.png", "000005.png"):
        (home / "s" / "samples" / name).write_bytes(b"")
    run_dir.write_status(home / "s", "running")
    assert go(home, *command("sample", home), "output_dir=s") == 0, output_of(home)
    assert_whole(home / "s", "sample", uninterrupted)


def test_data_dir_does_not_matter_for_continuing(home, uninterrupted):
    shutil.copytree(uninterrupted("sample"), home / "s")
    (home / "s" / "samples" / "000007.png").unlink()
    run_dir.write_status(home / "s", "running")
    words = [*command("sample", home), "output_dir=s", "data_dir=elsewhere"]
    assert go(home, *words) == 0, output_of(home)
    (home / "s" / "config.until-step-0000006.yaml").unlink()  # it says where they lay before
    assert_whole(home / "s", "sample", uninterrupted)


@pytest.mark.slow
def test_a_folder_of_other_pictures_is_refused_by_key_and_values(home, uninterrupted):
    shutil.copytree(uninterrupted("sample"), home / "s")
    before = {name: (home / "s" / name).read_bytes() for name in files_of(home / "s")}
    for change, expected in {
        "job.first_seed=0": "job.first_seed=2 there, 0 here",
        "job.num_samples=8": "job.num_samples=7 there, 8 here",
        "sampler=ddpm": "sampler._target_=ddpm.samplers.ddim.DDIM there, ",
        "job.labels=[3,1]": "job.labels=[3, 1, 8] there, [3, 1] here",
    }.items():
        (home / "out.txt").write_text("")
        words = [w for w in command("sample", home) if change != "sampler=ddpm" or "eta" not in w]
        assert go(home, *words, change, "output_dir=s") == 2, output_of(home)
        (line,) = output_of(home).splitlines()
        assert line.startswith("output_dir=s: the folder holds another run (")
        assert expected in line
        assert line.endswith("Choose another folder.")
    assert {name: (home / "s" / name).read_bytes() for name in files_of(home / "s")} == before


def test_pictures_of_unknown_origin_are_refused_and_kept(home):
    (home / "s" / "samples").mkdir(parents=True)
    (home / "s" / "samples" / "000002.png").write_bytes(b"mine")
    assert go(home, *command("sample", home), "output_dir=s") == 2
    assert "output_dir=s: holds samples of an unknown run" in output_of(home)
    assert files_of(home / "s") == {"samples/000002.png"}
    assert (home / "s" / "samples" / "000002.png").read_bytes() == b"mine"


def test_samples_of_other_seeds_are_kept(home, uninterrupted):
    words = [*command("sample", home), "output_dir=s"]
    assert go(home, *words, crash="sample.saved:4") == -9
    for name in ("000001.png", "000009.png", "notes.txt"):
        (home / "s" / "samples" / name).write_bytes(b"mine")
    assert go(home, *words) == 0, output_of(home)
    for name in ("000001.png", "000009.png", "notes.txt"):
        file = home / "s" / "samples" / name
        assert file.read_bytes() == b"mine"
        file.unlink()
    assert_whole(home / "s", "sample", uninterrupted)


# asked to stop


@pytest.mark.parametrize(
    "job",
    ["sample", pytest.param("interpolate", marks=SLOW), pytest.param("inpaint", marks=SLOW)],
)
def test_a_signal_between_two_batches(job, home, uninterrupted):
    from ddpm.jobs import sampling

    save = sampling.save_image

    def ask(image, file):
        save(image, file)
        if len(list(file.parent.glob("*.png"))) == 5:  # in the middle of the second batch
            os.kill(os.getpid(), signal.SIGTERM)

    words = [*command(job, home), "output_dir=s"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "save_image", ask)
        assert go(home, *words) == 143, output_of(home)
    assert status_of(home / "s")["state"] == "preempted"
    assert len(list((home / "s" / "samples").iterdir())) == 6
    assert "stopped  by a signal, " in output_of(home)
    assert "preempted  s; the same command" in output_of(home)
    there = times_of(home / "s")
    assert go(home, *words) == 0, output_of(home)
    assert_whole(home / "s", job, uninterrupted)
    assert {k: v for k, v in times_of(home / "s").items() if k in there} == there


def test_signal_after_the_last_batch_leaves_the_grid_to_the_next_start(home, uninterrupted):
    from ddpm.jobs import sampling

    save = sampling.save_image

    def ask(image, file):
        save(image, file)
        if file.name == "000008.png":
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "save_image", ask)
        assert go(home, *command("sample", home)) == 128 + signal.SIGUSR1, output_of(home)
    (folder,) = folders(home)
    assert "grid.png" not in files_of(folder)
    assert go(home, *command("sample", home)) == 0, output_of(home)
    assert_whole(folder, "sample", uninterrupted)
    assert folders(home) == [folder]


def test_second_signal_stops_at_once_without_partial_files(home, uninterrupted):
    from ddpm.jobs import sampling

    def insist(image, file):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it should have stopped")

    words = [*command("sample", home), "output_dir=s"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "save_image", insist)
        assert go(home, *words) == 128 + signal.SIGINT, output_of(home)
    status = status_of(home / "s")
    assert (status["state"], status["error"]) == (
        "preempted",
        "stopped at once by a second signal, SIGINT",
    )
    assert "Traceback" not in output_of(home)
    assert not list(home.rglob(".*.tmp"))
    assert go(home, *words) == 0, output_of(home)
    assert_whole(home / "s", "sample", uninterrupted)


# several processes

TWO = ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2"]


def finished(child):
    """Exit status and output of a process."""
    try:
        out, err = child.communicate(timeout=200)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    return child.returncode, out + err


@SLOW
def test_two_processes_draw_the_same_images(home, uninterrupted):
    replaced = ("hardware", "job.batch_size")
    words = [*(w for w in command("sample", home) if w.split("=")[0] not in replaced)]
    words += [*TWO, "job.batch_size=2", "output_dir=two"]
    status, output = finished(process(home, *words, start_new_session=True))
    assert status == 0, output
    one, two = uninterrupted("sample"), home / "two"
    assert files_of(two) == files_of(one)
    for path in (one / "samples").iterdir():
        a, b = load_png(path).int(), load_png(two / "samples" / path.name).int()
        assert (a - b).abs().max() <= 1
    assert json.loads((two / "labels.json").read_text()) == json.loads(
        (one / "labels.json").read_text()
    )
    # The same two, stopped and gone on with: the same bytes.
    before = bytes_of(two)
    for missing in ("samples/000002.png", "samples/000005.png", "grid.png"):
        (two / missing).unlink()
    run_dir.write_status(two, "preempted")
    status, output = finished(process(home, *words, start_new_session=True))
    assert status == 0, output
    assert bytes_of(two) == before


def test_reference_samples_differ_from_each_other(uninterrupted):
    images = [load_png(path) for path in sorted((uninterrupted("sample") / "samples").iterdir())]
    assert len({image.numpy().tobytes() for image in images}) == 7
    assert torch.stack(images).float().std() > 5
