"""Where a page is served, what is printed, and mistakes: one line each."""

import re
import signal
import socket
import sys

import pytest
from support.report_folders import run_folder
from support.runs import process

from ddpm.errors import InputError
from ddpm.web import server


@pytest.fixture
def opened(monkeypatch):
    """What would be served: (application, host, token, title) of each page."""
    pages = []

    def run(app, opened, host, token, title):
        pages.append((app, host, token, title))
        opened.close()

    monkeypatch.setattr(server, "run", run)
    monkeypatch.delenv(server.TOKEN, raising=False)
    return pages


def test_port_in_use_is_reported_with_a_free_one(run, opened, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, _, err = run("job=watch", f"job.port={port}")
    assert status == 2
    expected = rf"job.port={port}: is in use, perhaps by another page; job.port=(\d+) is free.\n"
    free = re.fullmatch(expected, err)
    assert free is not None, err
    server.bind("127.0.0.1", int(free[1])).close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["job.host=0.0.0.0"], "job.host=0.0.0.0: others could reach the page."),
        (["job.host=192.0.2.1"], "job.host=192.0.2.1: others could reach the page."),
        (["job.port=70000"], "job.port=70000: must be a whole number from 0 to 65535."),
        (["job.max_runs=0"], "job.max_runs=0: must be a whole number from 1."),
        (["runs=[nowhere]"], "runs: nowhere is not the folder of a run"),
        (["sweep=nothing"], "sweep=nothing: no jobs in outputs/sweep/nothing."),
        (["output_dir=nowhere"], "output_dir=nowhere: no such folder."),
        (["sweep=a", "output_dir=b"], "job=watch: name one of sweep=a and output_dir=b."),
        (["model=unet"], "model: job=watch only reads runs"),
    ],
)
def test_invalid_arguments_are_refused(words, message, run, opened):
    status, _, err = run("job=watch", *words)
    assert (status, opened) == (2, [])
    assert message in err
    assert len(err.strip().splitlines()) <= 5


@pytest.mark.parametrize("token", ["short", "a b c d e f g h i j", "ü" * 20])
def test_weak_tokens_are_refused(token, monkeypatch):
    monkeypatch.setenv(server.TOKEN, token)
    with pytest.raises(InputError, match=r"DDPM_WEB_TOKEN: must have 16 or more"):
        server.check_address("127.0.0.1")


def test_host_is_served_with_the_token_of_the_variable(run, opened, monkeypatch):
    monkeypatch.setenv(server.TOKEN, "k" * 32)
    assert run("job=watch", "job.port=0", "job.host=0.0.0.0")[0] == 0
    [(app, host, token, _)] = opened
    assert (host, token, app.any_address) == ("0.0.0.0", "k" * 32, True)
    lines = server.lines("x", host, 80, token)
    assert not any("k" * 32 in line or "ssh" in line for line in lines)


def test_each_start_has_a_new_token(monkeypatch):
    monkeypatch.delenv(server.TOKEN, raising=False)
    tokens = {server.check_address("127.0.0.1") for _ in range(20)}
    assert len(tokens) == 20
    assert min(map(len, tokens)) >= 24


@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_address_and_ssh_command_are_printed(host):
    shown = f"[{host}]" if ":" in host else host
    lines = server.lines("3 runs", host, 8400, "t")
    assert lines[0] == "shows    3 runs"
    assert lines[1] == f"page     http://{shown}:8400/?token=t"
    assert f"ssh -L 8400:{shown}:8400 {socket.gethostname()}" in lines[2]


def test_missing_package_is_reported_in_one_line(run, monkeypatch, opened):
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # find_spec raises for it
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    status, _, err = run("job=watch")
    assert status == 2
    assert err == "job=watch: needs starlette and uvicorn: pip install -e '.[web]'\n"


def test_runs_are_selected_by_outputs_sweep_or_name(run, opened, tmp_path):
    for name in ("train/x", "sweep/study/0-a", "sweep/study/1-b"):
        run_folder(tmp_path / "outputs" / name, [1.0])
    run_folder(tmp_path / "elsewhere" / "y", [1.0])
    words = [[], ["sweep=study"], ["runs=[outputs/train/x]"], ["output_dir=elsewhere"]]
    for more in words:
        status, _, err = run("job=watch", "job.port=0", *more)
        assert (status, err) == (0, "")
    titles = [title for *_, title in opened]
    assert titles == [
        *("3 runs of outputs", "2 runs of sweep study", "1 run of x", "1 run of elsewhere")
    ]


@pytest.mark.parametrize("ends", ["signal", pytest.param("reader", marks=pytest.mark.slow)])
def test_server_ends_on_ctrl_c_and_on_a_closed_output(ends, tmp_path):
    """The second as in `python run.py job=watch | head -1`."""
    child = process(tmp_path, "job=watch", "job.port=0")
    first = child.stdout.readline()
    if ends == "signal":
        while not child.stdout.readline().startswith("end"):
            pass
        child.send_signal(signal.SIGINT)
        out, err = child.communicate()
        assert (out, err) == ("Stopped.\n", "")
    else:
        child.stdout.close()
        assert child.stderr.read() == ""
        child.wait(60)
    assert first == "shows    0 runs of outputs\n"
    assert child.returncode == 0
