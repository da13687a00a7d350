"""Overrides that can be pasted into a shell: quoted for Hydra's parser, then for bash."""

import os
import re
import shlex
from pathlib import Path

from ddpm.runner import own_folder

# Strings that Hydra reads unchanged without quotes, except for its keywords.
_PLAIN = re.compile(r"(?:[A-Za-z_/]|\.{1,2}/)[\w./@%+:-]*", re.ASCII)
_KEYWORDS = ("null", "true", "false", "nan", "inf", "infinity")


def quoted(text: str) -> str:
    """A string as the value of an override, in double quotes if Hydra would otherwise change it.

    `${` is escaped, since OmegaConf resolves references in quoted strings, too.
    """
    if _PLAIN.fullmatch(text) and text.lower() not in _KEYWORDS:
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    text = re.sub(r'(\\*)"', r'\1\1\\"', text)
    return f'"{text}{_backslashes_at_end(text)}"'  # a single one would escape the closing quote


def _backslashes_at_end(text: str) -> str:
    return text[len(text.rstrip("\\")) :]


def word(key: str, value: object) -> str:
    """`key=value` as typed in bash: `'resume="runs/c=1"'`. A relative path that begins with `~` or
    is `???`, which have special meanings, is prefixed with `./`."""
    text = str(value)
    return bash_word(f"{key}={quoted(f'./{text}' if text[:1] == '~' or text == '???' else text)}")


def bash_word(text: str) -> str:
    """A string as one word of bash. Control characters are escaped, so it stays on one line."""
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogateescape"))


def command(*words: str) -> str:
    """`python run.py ...` for bash, with the `--config-dir` of this command; the words come from
    `word` or `bash_word`."""
    folder = own_folder.current()
    flags = [] if folder is None else ["--config-dir", bash_word(str(relative(folder)))]
    return " ".join(["python run.py", *flags, *words])


def guiding(classifier: Path) -> str:
    """The command that samples with a classifier."""
    guidance = ["guidance=classifier", word("guidance.classifier", classifier)]
    return command("job=sample", "checkpoint=<a run of the same data>", *guidance)


def relative(folder: Path) -> Path:
    """A folder relative to the working directory, if it lies below it."""
    path, current = Path(os.path.abspath(folder)), Path.cwd()
    return path.relative_to(current) if path.is_relative_to(current) else path
