import multiprocessing
import re

import pytest

from ddpm import run_dir
from ddpm.errors import InputError

CONFIG = {"a": [1, 2], "b": None, "choices": {"job": "train"}}


def test_same_name_twice_gives_two_folders(tmp_path):
    paths = {run_dir.create(tmp_path / "a" / "now", CONFIG, unique=True) for _ in range(3)}
    assert {p.name for p in paths} == {"now", "now-2", "now-3"}


def test_a_folder_with_a_run_is_left_alone(tmp_path):
    run_dir.create(tmp_path / "run", CONFIG, unique=False)
    run_dir.write_status(tmp_path / "run", "done", 5)
    with pytest.raises(InputError, match=r"holds a run already \(done\)"):
        run_dir.create(tmp_path / "run", CONFIG, unique=False)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    for unique in (False, True):
        with pytest.raises(InputError, match=re.escape(f"output_dir={tmp_path}/file/run")):
            run_dir.create(tmp_path / "file" / "run", CONFIG, unique=unique)


def _try_lock(path, queue):
    try:
        with run_dir.lock(path):
            queue.put("locked")
    except InputError as error:
        queue.put(str(error))


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def other():
        process = context.Process(target=_try_lock, args=(tmp_path, queue))
        process.start()
        answer = queue.get(timeout=30)
        process.join()
        return answer

    with run_dir.lock(tmp_path):
        assert "being worked on by process" in other()
    assert other() == "locked"


def test_status_and_config_come_back(tmp_path):
    run_dir.write_status(tmp_path, "failed", 3, error="no reason")
    assert run_dir.read_status(tmp_path) == {"state": "failed", "step": 3, "error": "no reason"}
    run_dir.write_config(tmp_path, CONFIG)
    assert run_dir.read_config(tmp_path) == CONFIG
    assert run_dir.read_status(tmp_path / "none") == {}


def test_what_is_no_run_is_said_to_be_none(tmp_path):
    with pytest.raises(InputError, match="not the folder of a run"):
        run_dir.read_config(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="line 2, column 1"):
        run_dir.read_config(tmp_path)
