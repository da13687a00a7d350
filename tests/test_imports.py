"""Who may import whom, read from the source: the layers of the package stay layers."""

import ast
import functools
import re
from pathlib import Path

import pytest
from conftest import ROOT

FILES = sorted((ROOT / "ddpm").rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
}


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


# Where a package of others may be imported.
HYDRA = {
    "ddpm.runner.config.build",
    "ddpm.cli",
    "ddpm.runner.config.validate",
    "ddpm.runner.config.planning",
    "ddpm.runner.config.merge",
    "ddpm.runner.config.explain",
    "ddpm.runner.config.overrides",
    "ddpm.runner.config.redaction",
    "ddpm.runner.config.team",
    "ddpm.jobs.report",
    "ddpm.runner.sweeps",
    "ddpm.runner.config.wandb_settings",
}
ONLY = {
    "hydra": HYDRA,
    "omegaconf": HYDRA,
    "wandb": {"ddpm.trackers.wandb", "ddpm.trackers.wandb_client"},
    "torch.utils.tensorboard": {"ddpm.trackers.tensorboard"},
    "matplotlib": {"ddpm.trackers.local"},
    "lightning_fabric": {
        "ddpm.runner.execution.eager",
        "ddpm.runner.distributed.fabric",
        "ddpm.runner.execution.launch",
        "ddpm.jobs",
    },
    "torchvision": {"ddpm.data"},
    "PIL": {"ddpm.data", "ddpm.images", "ddpm.runner.report", "ddpm.trackers"},
    "jinja2": {"ddpm.runner.report"},
    "sklearn": {"ddpm.data.digits"},
    "safetensors": {"ddpm.runner.checkpoints.safetensors_file"},
    "submitit": {"ddpm.runner.sweeps.launchers.slurm", "ddpm.runner.sweeps.launchers.slurm_task"},
    "optuna": {
        "ddpm.runner.sweeps.search.optuna_search",
        "ddpm.runner.sweeps.search.space",
        "ddpm.runner.sweeps.search.trials",
    },
}

ANYWHERE = {
    "ddpm.errors",
    "ddpm.runner.safe_io.listing",
    "ddpm.runner.safe_io.atomic",
    "ddpm.runner.safe_io.file_locks",
}

# What a module may know of ours, besides ANYWHERE. A folder stands for all in it.
LEAVES = {
    "ddpm.models": {"ddpm.models.layers", "ddpm.models.unet_blocks"},
    "ddpm.schedules": {"ddpm.schedules.base"},
    "ddpm.objectives": {"ddpm.objectives.base"},
    "ddpm.weightings": {"ddpm.weightings.base", "ddpm.objectives.base"},
    "ddpm.likelihood": set(),
    "ddpm.diffusion": {
        "ddpm.likelihood",
        "ddpm.objectives.base",
        "ddpm.objectives.eps",  # by default
        "ddpm.weightings.base",
        "ddpm.weightings.uniform",  # by default
    },
    "ddpm.samplers": {"ddpm.diffusion", "ddpm.samplers.base"},
    "ddpm.data": {
        "ddpm.data.base",
        "ddpm.data.decode",
        "ddpm.runner.runs.run_dir",  # by folder alone, which leaves out runs among the images
    },
    "ddpm.trackers": {
        "ddpm.images",
        "ddpm.runner.runs.metrics_log",
        "ddpm.trackers.loss_curve",
        "ddpm.trackers.base",
        "ddpm.trackers.local",
        "ddpm.trackers.wandb_client",
    },
    "ddpm.trackers.wandb_client": {
        "ddpm.trackers.wandb_client",
        "ddpm.runner.checkpoints.checkpoint",
        "ddpm.runner.runs.metrics_log",
        "ddpm.runner.runs.run_dir",
        "ddpm.runner.config.secret_names",
    },
    "ddpm.trackers.wandb_client.reference": {"ddpm.trackers.wandb_client"},
    "ddpm.runner.runs.code_version": set(),
    "ddpm.runner.config.team": set(),
    "ddpm.runner.runs.stop_file": set(),
    "ddpm.training.ema": set(),
    "ddpm.runner.execution.eager": set(),
    "ddpm.runner.distributed.threads": set(),
    "ddpm.runner.config.presets": {"ddpm.runner.config.catalog", "ddpm.runner.config.rules"},
    "ddpm.runner.safe_io": {"ddpm.runner.safe_io"},
    "ddpm.runner.runs.stored_config": {"ddpm.runner.safe_io"},
    "ddpm.runner.safe_io.atomic": set(),
    "ddpm.runner.safe_io.file_locks": set(),
    "ddpm.runner.checkpoints.safetensors_file": {
        "ddpm.runner.runs.stored_config",
        "ddpm.runner.safe_io",
    },
    "ddpm.runner.checkpoints.checkpoint": {
        "ddpm.runner.safe_io.failpoint",
        "ddpm.runner.checkpoints.safetensors_file",
        "ddpm.runner.distributed.fsdp",
        "ddpm.runner.runs.stored_config",
        "ddpm.runner.safe_io",
    },
    "ddpm.images": set(),
    "ddpm.training.memory": set(),
    "ddpm.randomness": set(),
    "ddpm.training.recompute": set(),
    "ddpm.runner.safe_io.failpoint": set(),
    "ddpm.runner.runs.metrics_log": set(),
    "ddpm.runner.execution.shadowed_modules": set(),
    "ddpm.runner.terminal.shell": set(),
    "ddpm.runner.config.overrides": {"ddpm.runner.terminal.shell"},
    "ddpm.runner.config.paths": {"ddpm.runner.terminal.shell"},
    "ddpm.runner.runs.run_dir": {
        "ddpm.runner.safe_io.failpoint",
        "ddpm.runner.terminal.shell",
        "ddpm.runner.runs.stored_config",
        "ddpm.runner.safe_io",
    },
    "ddpm.runner.report": {
        "ddpm.data.decode",
        "ddpm.runner.runs.metrics_log",
        "ddpm.runner.report",
        "ddpm.runner.runs.run_dir",
        "ddpm.runner.terminal.shell",
        "ddpm.trackers.loss_curve",
        "ddpm.runner.safe_io",
    },
    "ddpm.trackers.loss_curve": set(),
    "ddpm.runner.terminal.progress": set(),
    "ddpm.runner.distributed.signals": set(),
    "ddpm.runner.distributed.ranks": set(),
    "ddpm.runner.distributed.fsdp": set(),
    "ddpm.runner.distributed.fabric": {
        "ddpm.runner.distributed.ranks",
        "ddpm.runner.distributed.threads",
    },
    "ddpm.runner.config.rules": {"ddpm.trackers.wandb_client.limits"},
    "ddpm.errors": set(),
    "ddpm.runner.safe_io.listing": set(),
    "ddpm.runner.terminal.streams": set(),
    "ddpm.runner.config.plan": set(),
    "ddpm.runner.config.catalog": set(),
    "ddpm.runner.config.redaction": {"ddpm.runner.config.secret_names"},
    "ddpm.runner.config.secret_names": set(),
    "ddpm.runner.config.build": {"ddpm.runner.config.catalog", "ddpm.runner.safe_io"},
}
UPPER = [
    "ddpm",
    "ddpm.cli",
    "ddpm.runner.config.validate",
    "ddpm.runner.config.planning",
    "ddpm.runner.config.merge",
    "ddpm.runner.execution.launch",
    "ddpm.runner.config.explain",
    "ddpm.jobs.report",
    "ddpm.runner.execution.execute",
    "ddpm.runner.config.output_dir",
    "ddpm.runner.config.wandb_settings",
    *(name for name in MODULES if name.startswith("ddpm.runner.sweeps")),
]
MIDDLE = {
    # Parts reach jobs and the pipeline as arguments: no model, schedule or data set by name.
    "ddpm.editing.interpolation": {"ddpm.diffusion", "ddpm.samplers.base"},
    "ddpm.editing.repaint": {"ddpm.diffusion", "ddpm.samplers.base"},
    "ddpm.pretrained": {
        "ddpm.runner.config.build",
        "ddpm.runner.checkpoints.checkpoint",
        "ddpm.diffusion",
    },
    "ddpm.guidance": {
        "ddpm.guidance.base",
        "ddpm.diffusion",
        "ddpm.pretrained",  # by from_run alone
    },
    "ddpm.pipeline": {
        "ddpm.diffusion",
        "ddpm.guidance.base",
        "ddpm.guidance.none",  # by default
        "ddpm.images",
        "ddpm.randomness",
        "ddpm.runner.config.build",  # by from_checkpoint alone
        "ddpm.runner.distributed.fabric",
        "ddpm.pretrained",
    },
    "ddpm.jobs": {
        "ddpm.runner.runs.stop_file",
        "ddpm.jobs",
        "ddpm.pipeline",
        "ddpm.pretrained",
        "ddpm.editing.interpolation",
        "ddpm.editing.repaint",
        "ddpm.diffusion",
        "ddpm.guidance.base",
        "ddpm.samplers.base",
        "ddpm.data.base",
        "ddpm.data.decode",
        "ddpm.runner.config.rules",
        "ddpm.trackers.base",
        "ddpm.runner.checkpoints.checkpoint",
        "ddpm.runner.terminal.progress",
        "ddpm.runner.safe_io.failpoint",
        "ddpm.runner.execution.eager",
        "ddpm.training.ema",
        "ddpm.runner.checkpoints.safetensors_file",
        "ddpm.runner.distributed.fabric",
        "ddpm.images",
        "ddpm.training.memory",
        "ddpm.runner.config.plan",
        "ddpm.randomness",
        "ddpm.training.recompute",
        "ddpm.runner.runs.run_dir",
        "ddpm.runner.distributed.fsdp",
        "ddpm.runner.terminal.shell",
        "ddpm.runner.distributed.signals",
        "ddpm.runner.terminal.streams",
        "ddpm.runner.config.presets",
        "ddpm.runner.distributed.threads",
    },
}
LAST = ["layers", "stages", "base", "pictures", "local"]  # shared by the files of their folder


def inside(name, area):
    return name == area or name.startswith(f"{area}.")


def imports(path, *, top_only=False):
    """The modules a file imports; of ours, `from ddpm.jobs import x` counts as ddpm.jobs.x."""
    nodes = tree(path).body if top_only else ast.walk(tree(path))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def ours(path):
    return {name for name in imports(path) if inside(name, "ddpm")} - ANYWHERE


@pytest.mark.parametrize("package", ONLY)
def test_a_package_is_imported_where_it_belongs(package):
    users = {
        name
        for name, path in MODULES.items()
        if any(inside(imported, package) for imported in imports(path))
    }
    assert users, f"nobody imports {package}"
    assert {u for u in users if not any(inside(u, area) for area in ONLY[package])} == set()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_knows_only_what_is_below_it(name):
    rules = {area: known for area, known in (LEAVES | MIDDLE).items() if inside(name, area)}
    if not rules:
        assert name in UPPER, f"{name} has no place in the layers: give it one here"
        return
    ((_, known),) = rules.items()
    strange = {m for m in ours(MODULES[name]) if not any(inside(m, k) for k in known)}
    assert strange == set()


PARTS = ["data", "guidance", "models", "objectives", "samplers", "schedules", "weightings"]


@pytest.mark.parametrize("folder", [*PARTS, "trackers"])
def test_parts_do_not_know_their_neighbours(folder):
    for path in (ROOT / "ddpm" / folder).glob("*.py"):
        known = {m for m in ours(path) if inside(m, f"ddpm.{folder}")}
        assert {m.rpartition(".")[2] for m in known} <= set(LAST), path.name


def test_nobody_below_imports_what_is_above():
    above = {
        "ddpm.cli",
        "ddpm.runner.config.validate",
        "ddpm.jobs.report",
        "ddpm.runner.execution.execute",
        "ddpm.runner.config.explain",
        "ddpm.runner.config.planning",
        "ddpm.runner.config.merge",
        "ddpm.runner.execution.launch",
        "ddpm.runner.config.output_dir",
    }
    for name, path in MODULES.items():
        if name not in above and not inside(name, "ddpm.runner.sweeps"):
            assert ours(path) & above == set(), name


def test_only_the_gate_instantiates():
    for path in [*FILES, ROOT / "run.py"]:
        words = {n.attr for n in ast.walk(tree(path)) if isinstance(n, ast.Attribute)}
        words |= {n.id for n in ast.walk(tree(path)) if isinstance(n, ast.Name)}
        words |= {name.rpartition(".")[2] for name in imports(path)}
        assert ("instantiate" in words) is (path == ROOT / "ddpm" / "build.py"), path


def calls(path):
    """Every call in a file: the dotted name, and the node."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=list(MODULES))
def test_nothing_is_unpickled_or_evaluated(path):
    for name, node in calls(path):
        assert name not in ("eval", "exec", "os.system", "__import__"), name
        if name.endswith("torch.load"):
            safe = [k.value for k in node.keywords if k.arg == "weights_only"]
            assert [ast.unparse(value) for value in safe] == ["True"], node.lineno
        if name in ("np.load", "numpy.load"):
            assert "allow_pickle" not in {k.arg for k in node.keywords}, node.lineno
    banned = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert {name.partition(".")[0] for name in imports(path)} & banned == set()


def test_checkpoints_are_read_in_one_place():
    readers = {name for name, path in MODULES.items() if "torch.load" in dict(calls(path))}
    assert readers == {"ddpm.runner.safe_io.torch_archive"}


def test_run_py_is_only_the_door():
    assert set(imports(ROOT / "run.py")) == {"ddpm.runner.execution.shadowed_modules", "ddpm.cli"}


def test_the_door_opens_without_torch():
    """What --help needs: nothing that is imported at the top of it, or of what that imports."""
    seen, todo = set(), ["ddpm.cli"]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        names = set(imports(MODULES[name], top_only=True))
        heavy = {"torch", "torchvision", "lightning_fabric", "wandb", "numpy", "PIL", "matplotlib"}
        assert {n.partition(".")[0] for n in names} & heavy == set(), name
        todo += [n for n in names if n in MODULES]
    assert seen >= {
        "ddpm.cli",
        "ddpm.runner.config.explain",
        "ddpm.runner.sweeps.run_job",
        "ddpm.runner.config.build",
    }


SOURCES = [
    path
    for folder in ("ddpm", "conf", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".yaml") and path != Path(__file__)
]


def test_no_absolute_paths_and_nothing_left_to_do():
    absolute = re.compile(r"""["'\s=](/(?:home|root|tmp|work|mnt|Users|usr|opt|var|data)/\w)""")
    for path in [*SOURCES, ROOT / "run.py", ROOT / "pyproject.toml"]:
        text = path.read_text()
        found = absolute.findall(text)
        assert not found, f"{path.name}: {found}"
        assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text), path.name


def test_parts_name_no_device():
    """They run where their tensors are; only hardware.py and the pipeline's entry choose one."""
    for name, path in MODULES.items():
        if any(inside(name, f"ddpm.{part}") for part in PARTS):
            for call, node in calls(path):
                assert not call.endswith(".cuda"), name
                given = [ast.unparse(k.value) for k in node.keywords if k.arg == "device"]
                assert not [v for v in given if v.startswith(("'cuda", "'cpu"))], name


@pytest.mark.parametrize("folder", [*PARTS, "jobs", "trackers"])
def test_a_part_is_one_file_of_python_and_one_of_yaml(folder):
    group = folder.removesuffix("s")
    options = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")} - {"local"}
    options -= {"respaced"}  # ddpm with other arguments
    options -= {"report", "status"}  # ddpm/jobs/report.py: they are no runs
    files = {path.stem for path in (ROOT / "ddpm" / folder).glob("*.py")}
    assert options <= files
    if folder != "jobs":  # a loop may be cut into as many files as it needs
        assert files - options <= {"__init__", *LAST}
