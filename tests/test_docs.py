"""README and docs/: commands, links, pictures, code, and the tables that mirror the code."""

import ast
import functools
import importlib
import itertools
import re
import shlex
import shutil
import sys

import hydra
import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from support.base import ROOT

import ddpm
from ddpm import cli
from ddpm.metrics.base import Material, Pictures
from ddpm.objectives.v import V
from ddpm.objectives.x_0 import X0
from ddpm.runner import roles
from ddpm.runner.config import catalog
from ddpm.runner.runs.old_names import MOVED, RENAMED, RENAMED_GROUPS

DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PAGES = {
    page: (ROOT / page).read_text()
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS)
}
EXTENDING = "docs/extending.md"
# A file of the recipe: its name in backticks, then its block.
RECIPE = re.compile(r"^`((?:ddpm|conf|mine)/\S+)`:\n\n```(?:python|yaml)\n(.*?)^```", re.M | re.S)
FILES = dict(RECIPE.findall(PAGES[EXTENDING]))
# Commands that are written with dots for options of the reader's.
ABRIDGED = ("schedule=...",)


def commands(page):
    """Every command that starts run.py: the words after it. Placeholders stand for a folder."""
    text = re.sub(r"<[^<>\n]*>", "run", PAGES[page])
    lines = re.findall(r"^(?:    )?(?:python|srun python|torchrun .*?) ?(run\.py.*)$", text, re.M)
    lines += re.findall(r"`python (run\.py[^`\n]*)`", text)
    words = [tuple(shlex.split(line, comments=True)[1:]) for line in lines]
    return [c for c in dict.fromkeys(words) if not any(word in ABRIDGED for word in c)]


def shown(command):
    """The words that print the configuration of a command; of a sweep, that of its first job."""
    if "--help" in command:
        return ["--help"]
    words = [word for word in command if word not in ("-m", "--cfg", "job", "--help")]
    words = [re.sub(r"wandb:[^,\]]+", "run", word) for word in words]
    words = [word.replace("our_lab", "example_lab") for word in words]
    flags = [word for word in words if word.startswith("-") or "=" not in word]
    parser = OverridesParser.create()
    for word in words:
        if word not in flags:
            override = parser.parse_override(word)
            if "-m" in command and override.is_sweep_override():
                ranged = not override.is_choice_sweep()
                first = "1" if ranged else next(iter(override.sweep_string_iterator()))
                word = f"{override.get_key_element()}={first}"
            flags.append(word)
    return [*flags, "--cfg", "job"]


COMMANDS = sorted({c for page in PAGES if page != EXTENDING for c in commands(page)})
DISTINCT = {tuple(shown(command)): " ".join(command) for command in COMMANDS}


@pytest.mark.quick(21)
@pytest.mark.parametrize("words", DISTINCT, ids=DISTINCT.values())
def test_a_command_composes(words, run):
    status, out, err = run(*words)
    assert status == 0, err
    assert "ho2020_cifar10" in out if "--help" in words else "diffusion:" in out


def test_enough_commands_are_found():
    assert len(COMMANDS) >= 50
    assert ("-m", "sweep=first", "model=convnet,unet", "seed=1,2,3") in COMMANDS
    assert ("hardware=ddp",) in COMMANDS  # of torchrun


@pytest.fixture
def pasted(tmp_path, monkeypatch):
    """A checkout with the files of docs/extending.md: conf/ is a copy, ddpm/ finds them."""
    assert len(FILES) == 18
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for folder in (tmp_path / "ddpm").iterdir():
        package = importlib.import_module(f"ddpm.{folder.name}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    shutil.copytree(ROOT / "conf", tmp_path / "conf", dirs_exist_ok=True)
    monkeypatch.setattr(catalog, "CONF", tmp_path / "conf")
    main = hydra.main(config_path=str(catalog.CONF), config_name="config", version_base="1.3")
    monkeypatch.setattr(cli, "_hydra_main", main(cli._hydra_main.__wrapped__))
    cached = [f for f in vars(catalog).values() if hasattr(f, "cache_clear")]
    for function in cached:
        function.cache_clear()
    (tmp_path / "mine" / "experiment").mkdir()
    (tmp_path / "mine" / "experiment" / "my_study.yaml").write_text("# @package _global_\n")
    yield
    for function in cached:
        function.cache_clear()
    for name in [n for n in sys.modules if f"{n.replace('.', '/')}.py" in FILES]:
        del sys.modules[name]
        parent, _, child = name.rpartition(".")
        vars(sys.modules[parent]).pop(child, None)
    sys.modules.pop("dilated", None)


def test_the_recipes_work(pasted, run, tmp_path):
    tiny = ["job.max_steps=2", "job.batch_size=4", "job.num_samples=2", "hardware=cpu"]
    parts = ["model=tiny", "schedule=constant", "sampler=renoise", "data=shapes"]
    parts += ["objective=v", "weighting=truncated_snr", "metric=[brightness]"]
    parts += ["job.evaluate_every=1", "job.evaluate_samples=40", "job.evaluate_steps=2"]
    parts += ["job.keep_best=eval/brightness"]
    tracker = ["tracker=[csv_file]", "job.log_every=1", "data.conditional=true"]
    status, _, err = run(*parts, *tracker, *tiny, "output_dir=run")
    assert (status, err) == (0, "")
    lines = (tmp_path / "run" / "losses.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["1", "2"]
    assert (tmp_path / "run" / "checkpoints" / "best.pt").is_file()
    words = ["job=loss_by_time", "checkpoint=run", "job.timesteps=[5]", "job.num_images=2"]
    status, _, err = run(*words, "tracker=local", "hardware=cpu", "output_dir=losses")
    assert (status, err) == (0, "")
    assert (tmp_path / "losses" / "losses.json").read_text().startswith('{"5": ')
    words = ["job=evaluate", "checkpoint=run", "metric=[brightness]", "job.num_samples=40"]
    status, out, err = run(*words, "sampler.steps=2", "tracker=local", "hardware=cpu")
    assert (status, err) == (0, "")
    assert "grey levels" in out
    own = ["--config-dir", "mine", "model=dilated", "data=shapes", "tracker=local"]
    status, _, err = run(*own, *tiny, "output_dir=own")
    assert (status, err) == (0, "")
    words = ["--config-dir", "mine", "job=sample", "checkpoint=own", "hardware=cpu"]
    status, _, err = run(*words, "tracker=local", "job.num_samples=1", "sampler.steps=2")
    assert (status, err) == (0, "")
    for command in commands(EXTENDING):
        status, _, err = run(*shown(command))
        assert (status, err) == (0, ""), command


def test_the_metric_and_the_weighting_of_the_recipes_are_right(pasted):
    brightness = importlib.import_module("ddpm.metrics.brightness")
    images = torch.randint(0, 200, (400, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    real, held_out = Pictures(images[:200]), Pictures(images[200:])
    metric = brightness.Brightness(quantiles=100)
    brighter = Material(train=real, held_out=held_out, samples=Pictures(images[:200] + 50))
    (score,) = metric.measure(brighter)
    assert score.value == pytest.approx(50, abs=1e-3)
    assert score.low < 50 < score.high
    assert 0 < score.floor < 5
    weighting = importlib.import_module("ddpm.weightings.truncated_snr").TruncatedSNR(max_weight=50)
    snr = torch.tensor([0.0, 0.25, 1.0, 9.0, 1e4])
    assert weighting.weights(snr, V()).tolist() == pytest.approx([1, 0.8, 0.5, 0.9, 1], rel=1e-3)
    assert weighting.weights(snr, X0()).tolist() == [1, 1, 1, 9, 50]


def test_the_example_trains_and_draws(tmp_path, data_dir, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = importlib.import_module("from_scratch")
    monkeypatch.setattr(example, "STEPS", 2)
    monkeypatch.setattr(example, "SAMPLING_STEPS", 2)
    monkeypatch.setattr(example, "DATA_DIR", str(data_dir))
    monkeypatch.setattr(example, "PICTURE", str(tmp_path / "digits.png"))
    example.main()
    sys.modules.pop("from_scratch")
    assert (tmp_path / "digits.png").stat().st_size > 1000
    assert len((ROOT / "examples" / "from_scratch.py").read_text().splitlines()) <= 58


def python_blocks():
    for page, text in PAGES.items():
        for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
            yield pytest.param(block, id=f"{page}:{block[:30]}")


@pytest.mark.parametrize("block", list(python_blocks()))
def test_python_code_compiles_and_its_imports_exist(block):
    for node in ast.parse(block).body:
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    assert not re.search(r"\]\([^)\s]*\n", PAGES[page])  # it would not be a link
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


SOURCE = re.compile(r"\b((?:ddpm|conf|tests|benchmarks|examples)/[\w/]+\.(?:py|yaml))(?::(\w+))?")
ELSEWHERE = {*FILES, "conf/team/our_lab.yaml"}  # files of the reader


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_exist(page):
    for name, defined in SOURCE.findall(PAGES[page]):
        if name not in ELSEWHERE:
            assert (ROOT / name).is_file(), name
            if defined:
                tree = ast.parse((ROOT / name).read_text())
                kinds = (ast.FunctionDef, ast.ClassDef)
                names = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
                assert defined in names, f"{name}:{defined}"


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_machine(page):
    assert not re.search(r"(?<![\w.~>])/(?:home|root|tmp|work|mnt|Users|usr|opt)/", PAGES[page])
    links = re.findall(r"https?://([^/)\s]+)", PAGES[page])
    allowed = {"arxiv.org", "hydra.cc", "wandb.ai", "optuna.org", "keepachangelog.com"}
    assert set(links) <= allowed


def test_the_readme_is_short_and_links_every_page():
    readme = PAGES["README.md"]
    assert len(readme.splitlines()) <= 200
    for page in PAGES:
        assert page == "README.md" or f"({page}" in readme, page


def rows(page):
    """The rows of all tables of a page, as lists of cells."""
    lines = [line for line in PAGES[page].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_readme_lists_every_option():
    table = {row[0].strip("`"): row[1] for row in rows("README.md") if len(row) == 2}
    for group, options in catalog.groups().items():
        if group not in roles.FOLLOWING_PRESETS:
            assert {o for o in options if f"`{o}`" not in table[group]} == set(), group
    for group in ("launcher", "sweeper"):
        for file in (ROOT / "conf" / "hydra" / group).glob("*.yaml"):
            assert f"`{file.stem}`" in table[f"hydra/{group}"]


def test_upgrading_lists_every_old_name():
    listed = {row[0].strip("`"): row[1] for row in rows("docs/upgrading.md")}
    assert {old for old, new in RENAMED.items() if f"`{new}`" not in listed[old]} == set()
    assert all(f"`{old}" in PAGES["docs/upgrading.md"] for old in (*MOVED, *RENAMED_GROUPS))


def test_upgrading_names_modules_that_exist():
    table = PAGES["docs/upgrading.md"].partition("### Moved modules")[2].partition("\n\n| old |")[0]
    moved = re.findall(r"^\| (`.*) \| (.*) \|$", table, re.M)
    assert len(moved) >= 15
    for old, new in moved:
        files = re.findall(r"`([^`]+)`", new)
        if new.startswith("the same names"):
            files += re.findall(r"`([^`/]+\.py)`", old)
        folder = ""
        for file in files:
            folder = file if file.endswith("/") else folder
            path = ROOT / "ddpm" / (file if "/" in file else folder + file)
            assert path.exists(), path


def architecture_block():
    text = PAGES["docs/architecture.md"].partition("## Who may import whom")[2]
    return re.search(r"^```\n(.*?)^```", text, re.M | re.S)[1]


def test_architecture_draws_the_import_layers():
    tree = ast.parse((ROOT / "tests" / "test_imports.py").read_text())
    layers = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "LAYERS"
    )
    drawn = [set(line.split()) for line in architecture_block().splitlines()]
    assert drawn == [set(layer) for layer in reversed(layers)]


def test_architecture_describes_every_package():
    described = {row[0].strip("`") for row in rows("docs/architecture.md")}
    for folder in (ROOT / "ddpm", ROOT / "ddpm" / "runner"):
        packages = {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")} - {"runner/"}
        modules = {p.name for p in folder.glob("*.py") if p.name != "__init__.py"}
        assert packages | modules <= described


@functools.cache
def nodes():
    """The syntax tree of each file of the package, walked."""
    files = sorted((ROOT / "ddpm").rglob("*.py"))
    return {
        path.relative_to(ROOT).as_posix(): list(ast.walk(ast.parse(path.read_text())))
        for path in files
    }


def own_names():
    """Every name beginning with _ that this package defines."""
    names = {"_replace"}  # of a NamedTuple: public
    for node in itertools.chain(*nodes().values()):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif is_of_self(node) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def is_of_self(node):
    return isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "self"


def private_names(file):
    """The private names of libraries that a file uses."""
    for node in nodes()[file]:
        if isinstance(node, ast.Attribute) and not is_of_self(node):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))


@pytest.mark.slow
def test_upgrading_lists_private_interfaces():
    listed, own = {}, own_names()
    for row in rows("docs/upgrading.md"):
        if len(row) == 4:
            listed.setdefault(row[2].strip("`"), []).append(row[1])
    used = set()
    for name in nodes():
        found = {n for n in private_names(name) if re.fullmatch(r"_[a-z]\w*|_[A-Z]\w+", n)} - own
        found -= {"_utils", "_internal", "_subclasses", "_python_dispatch", "_pytree"}  # modules
        missing = {n for n in found if n not in " ".join(listed.get(name, []))}
        assert missing == set(), name
        used |= {name} if found else set()
    assert len(used) >= 10


def test_the_package_is_typed():
    assert (ROOT / "ddpm" / "py.typed").is_file()
    assert ddpm.__all__ == ["Parts", "Pipeline", "Run", "compose", "run", "train"]


def test_the_pre_commit_file_and_the_workflow():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["id"] for hook in hooks[0]["hooks"]] == ["ruff-check", "ruff-format"]
    version = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]
    assert hooks[0]["rev"] == f"v{version}"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["check"]["steps"][-1] == {"run": ".ci/run"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()


# So that the blocks of docs/python.md take seconds.
QUICK = {
    "trains": ["model=convnet", "job.max_steps=2", "job.log_every=1", "job.num_samples=1"],
    "resume": ["job.max_steps=3"],
    "draws": ["job.num_samples=70", "job.num_reference=80", "metric=kd", "features=pixels"],
}


def test_the_blocks_of_the_python_page_run(run, tmp_path, monkeypatch):
    GlobalHydra.instance().clear()
    composed = []

    def compose(*words, compose=ddpm.compose):
        kind = "resume" if words[0].startswith("resume") else "trains"
        kind = "draws" if words[0] == "job=evaluate" else kind
        quick = [*QUICK[kind], "hardware=cpu", "sampler.steps=2", "tracker=local"]
        names = [word.partition("=")[0] for word in quick]
        composed.append(words)
        return compose(*[w for w in words if w.partition("=")[0] not in names], *quick)

    monkeypatch.setattr(ddpm, "compose", compose, raising=False)
    page = PAGES["docs/python.md"]
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(compile(block, "docs/python.md", "exec"), names)
    assert len(composed) == 6
    assert names["evaluation"].scores.keys() == {"eval/kd_pixels", "eval/kd_pixels_held_out"}
    assert (tmp_path / "digits.png").is_file()
    assert (tmp_path / "denoising.gif").is_file()
    assert names["images"].shape == (4, 1, 16, 16)
    assert page.count("\n## ") == 10
