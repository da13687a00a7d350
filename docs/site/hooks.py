"""What mkdocs adds to docs/: pages made from README.md, conf/ and the docstrings, and MathML.

mkdocs.yml names this file. Links from a page to a file outside of docs/ lead to its page here, or
become plain text if it has none.
"""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
# Files outside of docs/ that are pages of the site.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"} | {
    "CHANGELOG.md": "changelog.md",
    "docs/walkthrough/README.md": "walkthrough/index.md",
}
PICTURES = "benchmarks/pictures"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```$|^(?: {4}[^\n]*\n)+)", flags=re.M | re.S)
KEY = re.compile(r"^(\s*)(?:- )?([\w./@-]+):(?:\s+(.*?))?(?:\s+#\s+(.*))?$")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation: pages of the walk-through, of the reference, and new ones."""
    nav = {next(iter(part)): part for part in config.nav or []}
    nav["Walk-through"]["Walk-through"] += [f"walkthrough/{p.stem}.md" for p in walkthrough()]
    reference = nav["Reference"]["Reference"]
    reference += [{"conf/": "reference/conf.md"}]
    reference += [{f"ddpm.{name}": f"reference/{name}.md"} for name in packages()]
    listed = re.findall(r"[^'\s]+\.md", str(config.nav))
    new = sorted(p.name for p in (ROOT / "docs").glob("*.md") if p.name not in listed)
    nav["How to"]["How to"] += new
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and the pictures of the benchmarks."""
    made = {page: (ROOT / source).read_text() for source, page in PAGES.items()}
    made |= {"gallery.md": gallery(), "reference/conf.md": conf_reference(CONF)}
    made |= {f"reference/{name}.md": python_reference(name) for name in packages()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    for picture in sorted((ROOT / PICTURES).iterdir()):
        path = f"{PICTURES}/{picture.name}"
        level = InclusionLevel.INCLUDED
        files.append(File.generated(config, path, abs_src_path=str(picture), inclusion=level))
    css = str(Path(__file__).with_name("extra.css"))
    files.append(File.generated(config, "extra.css", abs_src_path=css))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to the pages of the site."""
    sources = {site: source for source, site in PAGES.items()}
    made = page.file.src_uri.startswith(("reference/", "gallery"))
    here = (
        page.file.src_uri if made else sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    )
    depth = page.file.src_uri.count("/")
    blocks = CODE.split(markdown)
    return "".join(
        block if i % 2 or made else LINK.sub(lambda m: link(m, here, depth), block)
        for i, block in enumerate(blocks)
    )


def link(match: re.Match[str], here: str, depth: int) -> str:
    """A link of a page as it is on the site."""
    bang, text, target = match.groups()
    text = LINK.sub(lambda m: link(m, here, depth), text)
    path, sign, anchor = target.partition("#")
    if not path or "://" in target:
        return f"{bang}[{text}]({target})"
    absolute = ((ROOT / here).parent / path).resolve().relative_to(ROOT).as_posix()
    if absolute in PAGES:
        path = PAGES[absolute]
    elif absolute.startswith("docs/") and Path(absolute).suffix in (".md", ".png", ".gif"):
        path = absolute.removeprefix("docs/")
    elif absolute.startswith(PICTURES):
        path = absolute
    else:
        return text if text.startswith("`") else f"{text} (`{absolute}`)"
    return f"{bang}[{text}]({'../' * depth}{path}{sign}{anchor})"


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers show without a script."""

    def formula(match: re.Match[str]) -> str:
        return convert(html.unescape(match[2]))

    return re.sub(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', formula, content, flags=re.S
    )


def walkthrough() -> list[Path]:
    return sorted((ROOT / "docs" / "walkthrough").glob("0*.md"))


def packages() -> list[str]:
    """The packages and modules of the method."""
    found = [p for p in (ROOT / "ddpm").iterdir() if p.name[0] not in "._" and p.name != "runner"]
    modules = [p.stem for p in found if p.suffix == ".py"]
    return sorted(modules + [p.name for p in found if (p / "__init__.py").is_file()])


def python_reference(name: str) -> str:
    """A page with the docstrings of a module, or of all modules of a package."""
    path = ROOT / "ddpm" / name
    modules = [f"ddpm.{name}"]
    if path.is_dir():
        inner = sorted(p for p in path.rglob("*.py") if p.name != "__init__.py")
        modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in inner]
    return f"# ddpm.{name}\n\n" + "\n".join(f"::: {module}\n" for module in modules)


def conf_reference(conf: Path) -> str:
    """All groups, options and keys with their defaults and the comments of their files."""
    parts = [
        "# conf/: groups, options, keys",
        "`group=option` chooses a file, `group.key=value` changes a key. Made from the comments of "
        "the YAML files.",
        "## config.yaml",
        option(conf / "config.yaml"),
    ]
    for folder in sorted(p for p in conf.rglob("*") if p.is_dir() and any(p.glob("*.yaml"))):
        group = folder.relative_to(conf).as_posix()
        parts.append(f"## {group}")
        for file in sorted(folder.glob("*.yaml")):
            parts += [f"### {group}={file.stem}", option(file)]
    return "\n\n".join(parts) + "\n"


def option(file: Path) -> str:
    """The comment at the head of a file, its target, and a table of its keys."""
    head, rows, target, parents = [], [], "", {}
    for line in file.read_text(encoding="utf-8").splitlines():
        comment = re.match(r"^\s*#\s+(.*)$", line)
        if comment and not comment[1].startswith("@package"):
            if rows:
                rows[-1][2] = f"{rows[-1][2]} {comment[1]}".strip()
            else:
                head.append(comment[1])
        elif (key := KEY.match(line)) and not comment:
            indent, name, value, remark = len(key[1]), key[2], key[3] or "", key[4] or ""
            parents = {i: n for i, n in parents.items() if i < indent}
            full = ".".join([*parents.values(), name])
            parents[indent] = name
            if name == "_target_" and not target:
                target = value
            elif not name.startswith("_") and "defaults" not in parents.values():
                rows.append([full, value, remark])
    text = [" ".join(head)] if head else []
    if target:
        text.append(f"Builds `{target}`.")
    # A key that only holds others has no value; hydra.* are settings of Hydra itself.
    rows = [r for r in rows if (r[1] or r[2]) and not r[0].startswith("hydra.")]
    if rows:
        lines = [f"| `{key}` | {cell(value)} | {plain(remark)} |" for key, value, remark in rows]
        text.append("\n".join(["| key | default | meaning |", "|---|---|---|", *lines]))
    return "\n\n".join(text)


def cell(value: str) -> str:
    return f"`{plain(value)}`" if value else ""


def plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def gallery() -> str:
    """All pictures that README.md and docs/ show, with their captions."""
    parts, seen = ["# Gallery", "What runs of this program drew."], set()
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for source in texts:
        for caption, target in re.findall(r"!\[([^\]]+)\]\(([^)\s]+)\)", source.read_text()):
            path = (source.parent / target).resolve().relative_to(ROOT).as_posix()
            if path not in seen:
                seen.add(path)
                title = caption[0].upper() + caption[1:]
                parts.append(f"## {title}\n\n![{caption}]({path.removeprefix('docs/')})")
    return "\n\n".join(parts) + "\n"
