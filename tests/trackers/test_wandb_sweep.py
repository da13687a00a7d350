"""sweep.yaml: W&B's agent runs valid commands of run.py, with the run id that W&B gives."""

import os
import subprocess
import sys

import pytest
import yaml
from support.base import ROOT, TINY
from support.wandb_reader import read_run, run_files
from support.wandb_runs import not_logged_in, server

__all__ = ["not_logged_in", "server"]

SWEEP = yaml.safe_load((ROOT / "sweep.yaml").read_text())


def first_values():
    """One value for each parameter, as the server draws them."""
    for name, parameter in SWEEP["parameters"].items():
        values = [parameter[key] for key in ("value", "min") if key in parameter]
        yield name, {"value": (values or parameter["values"])[0]}


def command(**more):
    """The command that a server sends to an agent."""
    args = dict(first_values()) | {name: {"value": value} for name, value in more.items()}
    return {"type": "run", "run_id": "given1", "program": str(ROOT / "run.py"), "args": args}


@pytest.mark.parametrize("which", [0, -1])
def test_every_parameter_is_a_config_key_with_valid_values(which, run):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    assert create_sweep_command(SWEEP["command"])[-1] == "${args_no_hyphens}"
    ends = {
        name: {"value": parameter["values"][which]}
        if "values" in parameter
        else {"value": parameter.get("value", parameter.get("max" if which else "min"))}
        for name, parameter in SWEEP["parameters"].items()
    }
    words = create_sweep_command_args({"args": ends})["args_no_hyphens"]
    status, out, err = run(*words, "--cfg", "job")
    assert status == 0, err
    assert all(not isinstance(end["value"], str) or end["value"] for end in ends.values())
    lr = yaml.safe_load(out)["optimizer"]["lr"]
    assert float(lr) == ends["optimizer.lr"]["value"]


@pytest.mark.slow
def test_run_uses_the_id_given_by_the_agent(run, tmp_path, monkeypatch):
    for name, value in {"SWEEP_ID": "sw1", "RUN_ID": "given1", "MODE": "offline"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    tiny = [word for word in TINY if word != "tracker=local"]
    try:
        status, _, err = run(*tiny, "output_dir=run")
    finally:
        sys.modules["wandb"].teardown()
    assert status == 0, err
    (part,) = [read_run(path) for path in run_files(tmp_path / "run")]
    assert (part.run.run_id, part.run.sweep_id) == ("given1", "sw1")
    assert part.run.display_name.startswith("model=convnet ")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["run_id"] == "given1"
    monkeypatch.setenv("WANDB_RUN_ID", "../../x")
    status, _, err = run(*TINY, "output_dir=other")
    assert status == 0, err
    assert yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())["run_id"] != "../../x"


@pytest.mark.slow
def test_agent_runs_the_commands_of_the_server(server, tmp_path):
    server.sweep = yaml.safe_dump(SWEEP)
    small = dict(word.split("=") for word in TINY if word != "tracker=local")
    server.commands = [command(**small)]
    environment = os.environ | {"DDPM_DATA": str(tmp_path / "data"), "WANDB_SILENT": "false"}
    environment |= {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    agent = subprocess.run(
        [sys.executable, "-m", "wandb", "agent", "our-lab/ddpm/sw1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert agent.returncode == 0, agent.stderr
    (run,) = server.runs.values()
    assert (run.settings["sweep"], run.exit_code) == ("sw1", 0), agent.stdout + agent.stderr
    assert run.steps == [1, 2, 3, 4, 5, 6]
    assert [agent["sweep"] for agent in server.agents] == ["sw1"]
    (config,) = tmp_path.glob("outputs/train/*/*/config.yaml")
    assert yaml.safe_load(config.read_text())["run_id"] == "given1"
    assert list(server.runs) == ["given1"]
