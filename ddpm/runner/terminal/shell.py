"""Overrides written so that they can be pasted: quoted for Hydra's parser, then for bash."""

import re
import shlex

# What Hydra reads as this very text without quotes, unless it is a word with a meaning.
_PLAIN = re.compile(r"(?:[A-Za-z_/]|\.{1,2}/)[\w./@%+:-]*", re.ASCII)
_WORDS_WITH_A_MEANING = ("null", "true", "false", "nan", "inf", "infinity")


def quoted(text: str) -> str:
    """A text as the value of an override: in double quotes where Hydra would read it otherwise.

    `${` is escaped, since OmegaConf looks for references in quoted texts, too.
    """
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS_WITH_A_MEANING:
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    text = re.sub(r'(\\*)"', r'\1\1\\"', text)
    return f'"{text}{_backslashes_at_end(text)}"'  # one before the closing quote would escape it


def _backslashes_at_end(text: str) -> str:
    return text[len(text.rstrip("\\")) :]


def word(key: str, value: object) -> str:
    """`key=value` as it is typed in bash: `'resume="runs/c=1"'`. A relative path that begins with
    `~` or is `???`, which mean something else, gets a `./` before it."""
    text = str(value)
    return bash_word(f"{key}={quoted(f'./{text}' if text[:1] == '~' or text == '???' else text)}")


def bash_word(text: str) -> str:
    """A text as one word of bash. Control characters are escaped: the line stays one line."""
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
    """`python run.py ...` to be pasted into bash; the words as `word` or `bash_word` give them."""
    return " ".join(["python run.py", *words])
