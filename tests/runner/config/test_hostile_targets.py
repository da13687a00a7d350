"""Foreign configurations can build only the classes and functions named under conf/, and those that
options name in the folder of --config-dir, if the command line has it.

Covered: a configuration carried by a model file, a run folder or a downloaded artifact that names
what it wants called; the many callables that Hydra's own block list passes, aliases among them;
Hydra's other directives; interpolations and resolvers; other ways to the same functions in our own
source (`get_object`, `torch.load`, `torch.hub`, `torch.jit`, pickle, eval).

Cannot apply: Hydra's job logging and plugins are read from conf/ and from the command line alone,
which are code to this program; no launcher beyond Hydra's own is a dependency; artifacts are never
downloaded by the program, only read from a given folder.
"""

import ast
import functools
import re
import shutil
import sys

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import UnsupportedInterpolationType
from support.base import ROOT, TINY
from support.hostile import watched

from ddpm.errors import InputError
from ddpm.runner import own_folder
from ddpm.runner.config import build as gate
from ddpm.runner.config import catalog
from ddpm.runner.config.build import build, check_targets

TABLE = """
os.system os.popen os._exit os.abort os.kill os.execv os.execvp os.spawnl os.posix_spawn os.fork
os.mkdir os.remove os.rename os.putenv os.chmod posix.system
builtins.eval builtins.exec builtins.compile builtins.__import__ builtins.open builtins.getattr
builtins.breakpoint builtins.input
subprocess.run subprocess.call subprocess.Popen subprocess.check_output subprocess.getoutput
pickle.load pickle.loads pickle.Unpickler _pickle.loads marshal.loads shelve.open dill.loads
cloudpickle.loads
torch.load torch.hub.load torch.hub.load_state_dict_from_url torch.hub.download_url_to_file
torch.jit.load torch.package.PackageImporter torch.export.load torch.ops.load_library
torch.classes.load_library torch.utils.cpp_extension.load torch.utils.cpp_extension.load_inline
torch.serialization.load torch.serialization.add_safe_globals torch.multiprocessing.spawn
torch.distributed.init_process_group torch.utils.model_zoo.load_url
torch.storage._load_from_bytes torch.distributed.run.main torch.utils.collect_env.run
numpy.load numpy.fromfile numpy.ctypeslib.load_library numpy.f2py.compile joblib.load
joblib.memory.Memory pandas.read_pickle sklearn.datasets.fetch_openml
urllib.request.urlretrieve urllib.request.urlopen http.client.HTTPConnection ftplib.FTP
requests.get socket.socket socket.create_connection smtplib.SMTP xmlrpc.client.ServerProxy
socketserver.TCPServer http.server.test
shutil.rmtree shutil.move shutil.copyfile shutil.unpack_archive zipfile.ZipFile tarfile.open
tempfile.mkdtemp pathlib.Path pathlib.Path.unlink pathlib.Path.write_text
multiprocessing.Process multiprocessing.context.Process threading.Timer threading.Thread
concurrent.futures.ProcessPoolExecutor asyncio.run asyncio.create_subprocess_shell sched.scheduler
pip.main pip._internal.main ensurepip.bootstrap venv.create setuptools.setup
runpy.run_path runpy.run_module importlib.import_module importlib.reload
importlib.util.spec_from_file_location pkgutil.resolve_name ctypes.CDLL ctypes.cdll.LoadLibrary
ctypes.string_at webbrowser.open antigravity code.interact code.InteractiveInterpreter
codeop.compile_command pdb.run pdb.Pdb timeit.timeit trace.Trace cProfile.run doctest.testfile
pty.spawn platform.popen atexit.register signal.signal sys.exit sys.setrecursionlimit
sys.addaudithook functools.partial functools.reduce operator.methodcaller operator.attrgetter
types.FunctionType types.CodeType gc.get_objects inspect.getattr_static logging.config.dictConfig
logging.config.fileConfig logging.FileHandler sqlite3.connect yaml.load yaml.unsafe_load
hydra.utils.instantiate hydra.utils.call hydra.utils.get_class hydra.utils.get_method
hydra.utils.get_object hydra._internal.utils._locate hydra.main hydra.compose
omegaconf.OmegaConf.register_new_resolver omegaconf.OmegaConf.load omegaconf.OmegaConf.create
wandb.init wandb.login wandb.restore PIL.Image.open PIL.ImageShow.show lightning_fabric.Fabric.load
logging.os._exit logging.os.system random._os.system glob.os.remove torch.os.system
torch.hub.shutil.rmtree torch.optim.adam.os.system torch.optim.Adam.__init__
torch.optim.optimizer.functools.partial torch.optim.lr_scheduler.LambdaLR
torch.optim.Adam.__class__ torch.optim.Adam.load_state_dict torch.optim.Optimizer
ddpm.runner.config.build.hydra.utils.instantiate ddpm.runner.config.build.build
ddpm.runner.config.build.OmegaConf.create ddpm.cli.main
ddpm.cli.os._exit ddpm.runner.execution.launch.launch ddpm.runner.safe_io.torch_archive.read_archive
ddpm.runner.runs.run_dir.os.remove
ddpm.runner.checkpoints.checkpoint.shutil.rmtree
ddpm.runner.checkpoints.checkpoint.torch.load ddpm.trackers.local.open
ddpm.models.unet.UNet.__init__ ddpm.models.unet.UNet.__init__.__globals__
ddpm.models.unet.UNet.__init__.__globals__.__getitem__ ddpm.models.unet.UNet.__class__
ddpm.models.unet.UNet.__mro__ ddpm.models.unet.UNet.__subclasses__ ddpm.models.unet.torch.load
ddpm.models.unet ddpm.models.unet.UNet. .ddpm.models.unet.UNet ddpm..models.unet.UNet
ddpm.models.unet.UNet() ddpm/models/unet/UNet ddpm:models.unet.UNet ..os.system __main__.main
DDPM.models.unet.UNet ddpm.models.unet.UNET ddpm.models.unet.unet Ddpm.Models.Unet.UNet
TORCH.OPTIM.ADAM Torch.optim.Adam OS.system
"""
NAMES = [
    *TABLE.split(),
    "",
    " ",
    " torch.optim.Adam",
    "torch.optim.Adam ",
    "torch.optim.Adam\n",
    "torch.optim.Adam\nos.system",
    "\ttorch.optim.Adam",
    "torch.optim.Adam\0",
    "os.system\0torch.optim.Adam",
    "torch.optim.Adam\x1b[2K\x1b[1A",
    "torch.optim.Adam\r",
    "torch.optim.Adam\u200b",  # a blank of no width
    "\ufefftorch.optim.Adam",
    "torch.optim.\u0410dam",  # a Cyrillic A
    "t\u043erch.optim.Adam",  # a Cyrillic o
    "torch\uff0eoptim\uff0eAdam",  # full stops of full width
    "\uff4f\uff53.system",  # letters of full width, which Python takes for os
    "ddpm.models.unet.UN\u212ft",
    "ddpm.models.unet.U\u039det",
    "torch.optim.Adam\u202e",
    "lambda: 0",
    "__import__('os').system('touch gotcha')",
    "os;system",
]  # fmt: skip
GOOD = {"_target_": "ddpm.samplers.ddim.DDIM", "steps": 5, "eta": 0.0}


class Text(str):
    """What says one name when it is asked, and another when it is looked up."""

    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash("torch.optim.Adam")


SHAPES = {
    "top": lambda name: {"_target_": name},
    "with arguments": lambda name: {"_target_": name, "command": "touch gotcha", "args": ["x"]},
    "nested": lambda name: GOOD | {"steps": {"_target_": name}},
    "in a list": lambda name: [GOOD, {"_target_": name}],
    "in a list in a node": lambda name: GOOD | {"eta": [[{"_target_": name}]]},
    "below what is not built": lambda name: {"a": {"b": {"c": [{"d": {"_target_": name}}]}}},
    "_args_": lambda name: GOOD | {"_args_": [{"_target_": name}]},
    "_args_ alone": lambda name: {"_target_": name, "_args_": ["touch gotcha"]},
    "_partial_": lambda name: {"_target_": name, "_partial_": True},
    "_partial_ inside": lambda name: GOOD | {"eta": {"_target_": name, "_partial_": True}},
    "oc.create": lambda name: GOOD | {"eta": "${oc.create:{_target_: '" + name + "'}}"},
    "target of oc.create": lambda name: {"_target_": "${oc.create:'" + name + "'}"},
    "oc.decode": lambda name: {"_target_": "${oc.decode:'" + name + "'}"},
    "another key": lambda name: {"name": name, "_target_": "${name}"},
    "oc.env": lambda name: {"_target_": "${oc.env:HOSTILE}", "x": name},
    "a list of it": lambda name: {"_target_": [name]},
    "a node of it": lambda name: {"_target_": {"_target_": name}},
    "bytes of it": lambda name: {"_target_": name.encode()},
    "a text that lies": lambda name: {"_target_": Text(name)},
    "execution_whitelist": lambda name: GOOD | {"_execution_whitelist_": [name]},
}


def test_the_table_is_long_and_names_nothing_of_conf():
    assert len(NAMES) == len(set(NAMES)) >= 80
    assert not set(NAMES) & catalog.targets()


def test_side_effect_detector_works(tmp_path):
    import os
    import subprocess

    for deed in (lambda: os.system("true"), lambda: subprocess.run(["true"], check=True)):
        with pytest.raises(AssertionError), watched():
            deed()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_hostile_names_are_refused_without_side_effects(shape, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gate, "nearest", lambda name, options: "")  # a hint takes 2 ms
    refusals = []
    for name in NAMES:
        monkeypatch.setenv("HOSTILE", name.replace("\0", ""))
        node = shape(name)
        for enter in (build, check_targets):
            with watched(imports=True), pytest.raises(InputError) as refusal:
                enter(node, "model")
            refusals.append(str(refusal.value))
    assert all(len(text.splitlines()) == 1 and text.isprintable() for text in refusals)
    assert all(text.startswith("model") for text in refusals)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", ["top", "nested", "in a list in a node", "_partial_", "oc.env"])
def test_hostile_target_in_a_composed_config_is_refused(shape, monkeypatch):
    monkeypatch.setattr(gate, "nearest", lambda name, options: "")
    for name in (name for name in NAMES if "\0" not in name):
        monkeypatch.setenv("HOSTILE", name)
        node = OmegaConf.create(SHAPES[shape](name))
        with watched(), pytest.raises(InputError):
            build(node, "model")


@pytest.fixture
def own(tmp_path):
    """A folder for --config-dir, whose modules leave a file when they are imported."""
    folder = tmp_path / "own"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "named.yaml").write_text("_target_: own_gotcha.Named\n")
    (folder / "own_gotcha.py").write_text(
        "open('gotcha', 'w').close()\nclass Named: pass\nclass Other: pass\n"
    )
    return folder


@pytest.mark.parametrize("shape", ["top", "in a list in a node", "oc.env"])
def test_the_own_folder_permits_no_other_name(shape, own, monkeypatch):
    monkeypatch.setattr(gate, "nearest", lambda name, options: "")
    others = ["own_gotcha.Other", "own_gotcha", "own_gotcha.Named.__init__", "own_gotcha.open"]
    monkeypatch.setattr(sys, "path", [*sys.path])
    with own_folder.used(own):
        assert "own_gotcha.Named" in catalog.targets()
        for name in [*others, *NAMES]:
            monkeypatch.setenv("HOSTILE", name.replace("\0", ""))
            with watched(imports=True), pytest.raises(InputError):
                build(SHAPES[shape](name), "model")
    with watched(imports=True), pytest.raises(InputError, match="must be a target"):
        build(SHAPES["top"]("own_gotcha.Named"), "model")
    assert "own_gotcha" not in sys.modules


ALIASES = [
    "ddpm.runner.config.build.hydra.utils.instantiate",
    "ddpm.runner.config.build.OmegaConf.create",
    "ddpm.runner.config.build.functools.partial",
    "ddpm.runner.config.build.inspect.signature",
    "ddpm.models.unet.nn.Module",
    "ddpm.models.unet.UNet.__init__",
    "ddpm.models.unet.UNet.__init__.__globals__",
    "ddpm.models.unet.UNet.__class__",
    "ddpm.cli.os._exit",
    "ddpm.cli.os.system",
    "torch.hub.shutil.rmtree",
    "torch.os.system",
    "torch.Tensor.__class__",
    "logging.os._exit",
    "torch.hub",
    "os.system",
]


@pytest.mark.parametrize("name", ALIASES)
@pytest.mark.parametrize("shape", ["top", "in a list in a node", "_partial_"])
def test_target_in_conf_must_be_a_class_or_function(name, shape, monkeypatch):
    monkeypatch.setattr(catalog, "targets", lambda: frozenset({GOOD["_target_"], name}))
    with watched(), pytest.raises(InputError, match="must be a class or function"):
        build(SHAPES[shape](name), "model")


@pytest.mark.parametrize(
    "text", ["${oc.env:SECRET}", "a${oc.env:SECRET}b", "${x}", "???", "\\${x}"]
)
def test_interpolation_in_a_node_to_build_is_refused(text, monkeypatch):
    monkeypatch.setenv("SECRET", "1234")
    for node in (GOOD | {"steps": text}, GOOD | {"steps": [{"a": text}]}, [GOOD | {"eta": text}]):
        with pytest.raises(InputError, match="must be a value, not a reference") as refusal:
            build(node, "sampler")
        assert "1234" not in str(refusal.value)


@pytest.mark.parametrize("value", [1, 0, "true", None, [], {}], ids=repr)
def test_partial_is_true_or_false(value):
    with pytest.raises(InputError, match="_partial_"):
        build(GOOD | {"_partial_": value}, "sampler")


def test_a_configuration_too_deep_to_walk_is_refused_before_the_walk():
    deep = {"_target_": "os.system"}
    for _ in range(100_000):
        deep = {"x": deep}
    circle = {"_target_": GOOD["_target_"]}
    circle["steps"] = circle
    wide = [0]
    for _ in range(40):
        wide = [wide, wide]
    for node in (deep, circle, wide, [deep], GOOD | {"steps": {1, 2}}, {"x": object()}):
        for enter in (build, check_targets):
            with pytest.raises(InputError, match=r"nested deeper|more than|not plain data"):
                enter(node, "model")


# From the three places where a foreign configuration is read

MISSIONS = [
    {"_target_": "os.system", "command": "touch gotcha"},
    {"_target_": "os.mkdir", "path": "gotcha"},
    {"_target_": "builtins.exec", "_args_": ["open('gotcha', 'w')"]},
    {"_target_": "subprocess.run", "args": ["touch", "gotcha"]},
    {"_target_": "pathlib.Path.touch", "self": "gotcha"},
    {
        "_target_": "ddpm.runner.config.build.hydra.utils.instantiate",
        "config": {"_target_": "os.mkdir"},
    },
    {"_target_": "torch.optim.adam.os.system", "_partial_": True, "command": "touch gotcha"},
    {"_target_": "ddpm.models.unet.UNet\x1b[2K\nloaded", "x": 1},
    {"_target_": "torch.optim.\u0410dam"},
    {"_target_": ["os.system"]},
    {"_target_": "${oc.create:'os.system'}", "command": "touch gotcha"},
    {"a": [{"_target_": "webbrowser.open", "url": "http://localhost:1"}]},
]
SAMPLE = ["job=sample", "hardware=cpu", "tracker=local", "job.num_samples=1", "sampler=ddim"]
PARTS = ("model", "diffusion", "schedule", "data")


def poison(hparams, mission, number):
    """Put it where a part of the run is described, in a place that changes with the number."""
    part = PARTS[number % len(PARTS)]
    hparams[part] = {**mission} if number % 2 else {**hparams[part], **mission}


def assert_refused(status, out, err, folder, mission):
    text = out + err
    assert status == 2, text
    assert "Traceback" not in text
    assert "\x1b" not in text
    assert len(err.splitlines()) <= 5, err
    assert not [path for path in folder.rglob("*") if path.name == "gotcha"], mission
    words = "must be a target", "not allowed", "not a reference", "is not", "holds no"
    assert any(word in err for word in words), err


def rewrite(source, target, change):
    state = torch.load(source, weights_only=True)
    change(state)
    target.parent.mkdir(exist_ok=True)
    torch.save(state, target)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def folder(run, kept, request, tmp_path):
    """A finished run, made once and copied."""
    if not kept.exists():
        shutil.copytree(request.getfixturevalue("tiny"), kept)
        return tmp_path / "run"
    return shutil.copytree(kept, tmp_path / "run")


@pytest.fixture
def newest(folder):
    return folder / "checkpoints" / "step-0000006.pt"


def test_foreign_checkpoint_builds_nothing(run, newest, tmp_path):
    file = tmp_path / "artifact" / "step-0000006.pt"  # as a W&B artifact is, once downloaded
    for number, mission in enumerate(MISSIONS):
        rewrite(newest, file, lambda s, m=mission, n=number: poison(s["hparams"], m, n))
        with watched():
            result = run(*SAMPLE, f"checkpoint={file.parent if number % 3 == 0 else file}")
        assert_refused(*result, tmp_path, mission)


@pytest.mark.slow
def test_foreign_run_folder_builds_nothing(run, folder, tmp_path):
    text = (folder / "config.yaml").read_text()
    parts = (*PARTS, "optimizer", "sampler", "job")
    for number, mission in enumerate(MISSIONS):
        config = yaml.safe_load(text)
        part = parts[number % len(parts)]
        config[part] = {**config[part], **mission, "x": mission}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        with watched():
            result = run(f"resume={folder}", "job.max_steps=8")
        assert_refused(*result, tmp_path, mission)


FOREIGN_FOLDERS = {  # where a foreign run could name a folder of ours
    "own_folder": "own",
    "config_dir": "own",
    "hydra": {"searchpath": ["file://own"], "runtime": {"config_sources": [{"path": "own"}]}},
    "overrides": ["--config-dir=own", "--config-dir", "own", "hydra.searchpath=[file://own]"],
}


@pytest.mark.quick(1)
@pytest.mark.parametrize("target", ["own_gotcha.Named", "own_gotcha.Other"])
def test_foreign_files_reach_no_importable_module(target, own, run, folder, newest, monkeypatch):
    monkeypatch.syspath_prepend(own)
    flags = [] if target.endswith("Named") else ["--config-dir", "own"]
    mission = {"_target_": target}
    file = own / "model" / "artifact" / "step-0000006.pt"  # also if it lies there
    rewrite(newest, file, lambda s: s["hparams"].update({"model": mission, **FOREIGN_FOLDERS}))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"model": config["model"] | mission, **FOREIGN_FOLDERS}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(folder, own / "run")
    (own / "config.yaml").write_text(yaml.safe_dump(config))
    for words in ([*SAMPLE, f"checkpoint={file}"], ["resume=run"], ["resume=own/run"]):
        with watched():
            result = run(*flags, *words)
        assert_refused(*result, own.parent, mission)
        assert "own_gotcha" not in sys.modules


@pytest.mark.slow
def test_foreign_classifier_builds_nothing(run, newest, tmp_path):
    file = tmp_path / "artifact" / "step-0000006.pt"

    def change(state, mission, number):
        state["hparams"]["choices"]["job"] = "train_classifier"
        part = ("model", "diffusion")[number % 2]
        state["hparams"][part] = {**state["hparams"][part], **mission}

    for number, mission in enumerate(MISSIONS[::2]):
        rewrite(newest, file, lambda s, m=mission, n=number: change(s, m, n))
        with watched():
            result = run(
                *SAMPLE,
                f"checkpoint={newest}",
                "guidance=classifier",
                f"guidance.classifier={file.parent}",
                "job.labels=[1]",
            )
        assert_refused(*result, tmp_path, mission)


def test_hostile_target_builds_nothing_in_python(newest, tmp_path):
    from ddpm import Pipeline

    file = tmp_path / "artifact" / "step-0000006.pt"
    for number, mission in enumerate(MISSIONS):
        part = ("model", "diffusion", "sampler", "guidance")[number % 4]
        rewrite(newest, file, lambda s, m=mission, p=part: s["hparams"].update({p: {**m}}))
        with watched(), pytest.raises(InputError):
            Pipeline.from_checkpoint(file)
    assert not (tmp_path / "gotcha").exists()


# What the source may not say

SINGLE_DOORS = {  # what runs code of a file's or name's choice, and the one file that may use it
    r"\bhydra\.utils\.instantiate\b|\bget_(object|class|method)\b": {"runner/config/build.py"},
    r"\btorch\.load\(|\bserialization\b": {"runner/safe_io/torch_archive.py"},
    r"\bimport (pickle|marshal|shelve|dill|cloudpickle|joblib)\b": set(),
    r"\bpickle\.|\bUnpickler\b": set(),
    r"(?<![.\w])(eval|exec|compile|__import__)\(": set(),
    r"\btorch\.(hub|jit(?!\.is_tracing\b)|package)\b|\bload_inline\b|\btorch\.export\b": set(),
    r"\bos\.(system|popen|exec\w*|spawn\w*)\b": set(),
    r"\byaml\.(unsafe_|full_)?load\(|\bUnsafeLoader\b|\bFullLoader\b": {
        "runner/safe_io/yaml_json.py"
    },
    r"\.extract(all)?\(|\bunpack_archive\(": set(),
    r"allow_pickle\s*=\s*True|weights_only\s*=\s*False": set(),
    r"\bimport_module\(|\bexec_module\(": {"data/archive.py"},  # libraries, by constant names
}


@functools.cache
def code_of(path):
    """The source without docstrings, texts and comments."""
    return ast.unparse(_WithoutTexts().visit(ast.parse(path.read_text())))


class _WithoutTexts(ast.NodeTransformer):
    def visit_Constant(self, node):
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node):
        inner = [v.value for v in node.values if isinstance(v, ast.FormattedValue)]
        return ast.Tuple([self.visit(value) for value in inner], ast.Load())


@pytest.mark.parametrize("pattern", SINGLE_DOORS)
def test_each_way_to_run_code_is_used_only_in_allowed_modules(pattern):
    package = ROOT / "ddpm"
    files = [path for path in package.rglob("*.py") if re.search(pattern, code_of(path))]
    found = {path.relative_to(package).as_posix() for path in files}
    assert found <= SINGLE_DOORS[pattern]


def test_allowed_modules_use_what_they_are_allowed():
    for pattern, files in SINGLE_DOORS.items():
        for name in files:
            assert re.search(pattern, code_of(ROOT / "ddpm" / name)), pattern


def test_no_resolver_but_those_of_omegaconf_and_hydra(run):
    from omegaconf.basecontainer import BaseContainer

    run("--cfg", "job", *TINY)
    known = {"oc.create", "oc.decode", "oc.deprecated", "oc.dict.keys", "oc.dict.values", "oc.env"}
    known |= {"oc.select", "hydra", "now", "python_version"}
    known |= {"sweep_dir"}  # ddpm.runner.sweeps.folder.of
    known |= {"features_of"}  # ddpm.runner.config.catalog: one of the names in conf/features
    assert set(BaseContainer._resolvers) == known
    with pytest.raises(UnsupportedInterpolationType):
        OmegaConf.to_container(OmegaConf.create({"x": "${eval:1+1}"}), resolve=True)


def test_a_run_folder_named_like_a_group_may_name_no_installed_function(run, tmp_path):
    """--config-dir . in a folder that holds a run of others, which is called `sampler`."""
    (tmp_path / "sampler").mkdir()
    node = "a:\n  _target_: torch.utils.collect_env.run\nb:\n  _target_: sampler.evil.run\n"
    (tmp_path / "sampler" / "config.yaml").write_text(node)
    (tmp_path / "sampler" / "__init__.py").write_text("")
    (tmp_path / "sampler" / "evil.py").write_text("raise SystemExit(77)\n")
    with own_folder.used(tmp_path):
        for target in ("torch.utils.collect_env.run", "sampler.evil.run"):
            with pytest.raises(InputError, match="must be a target"):
                gate.build({"_target_": target}, "model")


def test_plugins_of_hydra_in_the_own_folder_are_not_imported(run, tmp_path):
    (tmp_path / "mine" / "hydra_plugins").mkdir(parents=True)
    (tmp_path / "mine" / "hydra_plugins" / "evil.py").write_text("raise SystemExit(77)\n")
    assert run("--config-dir", "mine", "--cfg", "job")[0] == 0


def test_an_option_that_includes_itself_is_refused_only_if_chosen(run, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "a.yaml").write_text("defaults: [a]\nwidth: 3\n")
    assert run("--config-dir", "mine", "--cfg", "job")[0] == 0
