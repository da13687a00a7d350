"""Who may import whom, read from the source: the layers of the package stay layers."""

import ast
import functools
import re
from pathlib import Path

import pytest
from support.base import ROOT

FILES = sorted((ROOT / "ddpm").rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
}


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


# Where a library may be imported.
HYDRA = {
    "ddpm.cli",
    "ddpm.jobs.compare",
    "ddpm.jobs.report",
    "ddpm.jobs.status",
    "ddpm.jobs.watch",
    "ddpm.runner.config",
    "ddpm.runner.sweeps",
}
ONLY = {
    "hydra": HYDRA,
    "omegaconf": HYDRA,
    "wandb": {"ddpm.trackers.wandb", "ddpm.trackers.wandb_client"},
    "torch.utils.tensorboard": {"ddpm.trackers.tensorboard"},
    "mlflow": {"ddpm.trackers.mlflow"},
    "trackio": {"ddpm.trackers.trackio"},
    "matplotlib": {"ddpm.trackers.local", "ddpm.figures"},
    "lightning_fabric": {
        "ddpm.runner.distributed",
        "ddpm.runner.execution",
        "ddpm.training",
        "ddpm.jobs",
    },
    "torchvision": {"ddpm.data"},
    "PIL": {"ddpm.data", "ddpm.images", "ddpm.runner.report", "ddpm.trackers"},
    "jinja2": {"ddpm.runner.report", "ddpm.figures"},
    "sklearn": {"ddpm.data.digits"},
    "safetensors": {
        "ddpm.runner.checkpoints.diffusers_folder",
        "ddpm.runner.checkpoints.safetensors_file",
        "ddpm.features.files",
        "ddpm.features.data",
    },
    "huggingface_hub": {"ddpm.runner.hub"},
    "submitit": {"ddpm.runner.sweeps.launchers"},
    "optuna": {"ddpm.runner.sweeps.search"},
    "starlette": {"ddpm.web"},
    "uvicorn": {"ddpm.web"},
}

# The packages from the lowest to the highest: each imports only from lines above its own, and, in
# a line of several, none of them imports from another. docs/architecture.md draws them.
LAYERS = [
    ["errors", "runner.roles", "runner.own_folder"],
    ["limits", "statistics"],
    ["runner.safe_io", "runner.terminal", "runner.distributed", "randomness", "ema"],
    ["models", "schedules", "objectives", "timesteps", "likelihood", "images", "runner.runs"],
    ["weightings", "augment", "data", "runner.checkpoints"],
    ["diffusion", "trackers", "features"],
    ["denoising", "runner.hub"],
    ["samplers", "runner.config", "runner.report"],
    ["editing", "pretrained", "metrics"],
    ["guidance", "runner.execution"],
    ["pipeline", "runner.sweeps"],
    ["evaluation"],
    ["training", "figures", "web"],
    ["jobs"],
    ["cli", "runner"],
    ["runner.api"],
]
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
# What the method may know of the runner: reading and writing files, and building from a
# configuration. The parts that conf/ chooses know nothing of it at all.
METHOD = {
    "models": set(),
    "ema": set(),
    "limits": set(),
    "statistics": set(),
    "schedules": set(),
    "objectives": set(),
    "weightings": set(),
    "timesteps": set(),
    "samplers": set(),
    "diffusion": set(),
    "denoising": set(),
    "likelihood": set(),
    "editing": set(),
    "randomness": set(),
    "guidance": set(),
    "images": {"safe_io"},
    "features": {"safe_io", "checkpoints"},  # files of weights
    "metrics": set(),
    "data": {"safe_io", "runs"},  # data=folder leaves out run folders among the images
    "trackers": {"safe_io", "runs", "checkpoints"},
    "pretrained": {"checkpoints", "config", "hub"},
    "pipeline": {"config", "distributed", "own_folder"},
    "figures": set(),
}
# Shared by the files of their folder; no part imports another part.
SHARED = [
    "layers",
    "group_norm",
    "group_norm_triton",
    "group_norm_cpu",
    "add_bias_triton",
    "gpu_kernels",
    "cpu_kernels",
    "convolution",
    "winograd",
    "unet_blocks",
    "transformer_blocks",
    "profiles",
    "base",
    "cache",
    "decode",
    "holdout",
    "idx",
    "archive",
    "pictures",
    "values",
    "multi",
    "nearest",
    "sets",
    "local",
    "loss_curve",
    "loss_of",
]


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
    return {name for name in imports(path) if inside(name, "ddpm")}


def unit(name):
    """The package that a module belongs to: `runner.runs`, `models`; a file at the top is one."""
    parts = name.split(".")[1:] or ["ddpm"]
    return ".".join(parts[:2] if parts[0] == "runner" else parts[:1])


@pytest.mark.quick(5)
@pytest.mark.parametrize("package", ONLY)
def test_a_package_is_imported_where_it_belongs(package):
    users = {
        name
        for name, path in MODULES.items()
        if any(inside(imported, package) for imported in imports(path))
    }
    assert users, f"nobody imports {package}"
    assert {u for u in users if not any(inside(u, area) for area in ONLY[package])} == set()


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"ddpm"}))
def test_imports_go_down(name):
    own = unit(name)
    assert own in LEVEL, f"{own} has no layer: give it one in LAYERS"
    for imported in ours(MODULES[name]) - {"ddpm"}:
        other = unit(imported)
        if other != own:
            assert LEVEL[other] < LEVEL[own], f"{name} imports {imported}"


@pytest.mark.parametrize("name", METHOD)
def test_the_method_knows_little_of_the_runner(name):
    for module, path in MODULES.items():
        if inside(module, f"ddpm.{name}"):
            runner = {i.split(".")[2] for i in ours(path) if inside(i, "ddpm.runner")}
            assert runner <= METHOD[name], module


def test_few_modules_are_at_the_top():
    assert len(list((ROOT / "ddpm").glob("*.py"))) <= 10


TORCH_FREE = ["runs", "report", "config", "safe_io", "terminal"]


@pytest.mark.parametrize("package", TORCH_FREE)
def test_these_packages_start_without_torch(package):
    """torch may be imported inside of functions, where a tensor is at hand."""
    starts = [name for name in MODULES if inside(name, f"ddpm.runner.{package}")]
    for name in starts:
        if name != "ddpm.runner.safe_io.torch_archive":
            assert_light(name, {"torch", "lightning_fabric", "torchvision"})


PARTS = [
    "data",
    "guidance",
    "metrics",
    "models",
    "objectives",
    "samplers",
    "schedules",
    "timesteps",
    "weightings",
]


@pytest.mark.parametrize("folder", [*PARTS, "trackers"])
def test_parts_import_no_other_part(folder):
    for path in (ROOT / "ddpm" / folder).glob("*.py"):
        known = {m for m in ours(path) if inside(m, f"ddpm.{folder}")}
        known = {m for m in known if not inside(m, "ddpm.trackers.wandb_client")}
        assert {m.rpartition(".")[2] for m in known} <= set(SHARED), path.name


def test_only_the_gate_instantiates():
    for path in [*FILES, ROOT / "run.py"]:
        words = {n.attr for n in ast.walk(tree(path)) if isinstance(n, ast.Attribute)}
        words |= {n.id for n in ast.walk(tree(path)) if isinstance(n, ast.Name)}
        words |= {name.rpartition(".")[2] for name in imports(path)}
        assert ("instantiate" in words) is (path == MODULES["ddpm.runner.config.build"]), path


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


def test_run_py_only_calls_the_entry_point():
    assert set(imports(ROOT / "run.py")) == {"ddpm.runner.execution.shadowed_modules", "ddpm.cli"}


def assert_light(start, heavy):
    """Nothing that is imported at the top of a module, or of what that imports, is heavy."""
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        names = set(imports(MODULES[name], top_only=True))
        assert {n.partition(".")[0] for n in names} & heavy == set(), name
        todo += [n for n in names if n in MODULES]
    return seen


def test_help_needs_no_torch():
    heavy = {"torch", "torchvision", "lightning_fabric", "wandb", "numpy", "PIL", "matplotlib"}
    seen = assert_light("ddpm.cli", heavy) | assert_light("ddpm", heavy)
    assert_light("ddpm.runner.api", heavy)  # torch comes in when a run starts
    assert seen >= {"ddpm.runner.config.explain", "ddpm.runner.sweeps.run_job"}


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


# Options that build the class of another one, or of a shared file, with other arguments.
OTHER_ARGUMENTS = {"samplers": {"respaced"}, "weightings": {"eps", "x_0", "v", "velocity"}}


@pytest.mark.parametrize("folder", [*PARTS, "jobs", "trackers"])
def test_a_part_is_one_file_of_python_and_one_of_yaml(folder):
    group = folder if folder == "timesteps" else folder.removesuffix("s")
    options = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")} - {"local"}
    options -= OTHER_ARGUMENTS.get(folder, set())
    options = {"inception_score" if option == "is" else option for option in options}
    files = {path.stem for path in (ROOT / "ddpm" / folder).glob("*.py")}
    assert options <= files
    if folder != "jobs":  # a loop may be cut into as many files as it needs
        assert files - options <= {"__init__", *SHARED}
