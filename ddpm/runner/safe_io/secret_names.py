"""Recognition of secrets by the name of a key or variable, and by its value.

A name is split into words: `hf_token`, `authToken`, `WANDB_API_KEY`. The last word of a compound
decides: `token_dim` is a size, `key_norm` a layer, `hf_token` a token. Counts (`num_tokens`,
`tokens_per_image`) and lookup keys (`sort_key`) are not secrets.

Numbers, booleans, null and lists of them are never secrets. A number of more than 18 digits is
treated as a string. On the command line and in the environment every value is a string: digits
under the name of a password or an API key are treated as secret, too.
"""

import re
from collections.abc import Sequence
from typing import Any

# Words, or adjacent words joined, that occur in names of secrets.
_SECRET = re.compile(
    r"passw|passphrase|passcode|sshpass|credential|webhook"
    r"|secret(?!ar|ion|iv|or)"  # not secretary, secretion
    r"|token(?!i[sz])"  # not tokenizer, tokenise
    r"|apikey|(access|private|auth)keys?$|^(key|pat|auth|dsn|bearer)$"
)
_PAIRS = re.compile(r"(api|access|private|auth|secret)keys?|databaseurl|.+pwd")
_PASSWORD = re.compile(r"passw|passphrase|passcode|sshpass|(api|access|private|auth|secret)key$")
# Last words of names of sizes, counts, kinds and parts of a network.
_HARMLESS_ENDS = re.compile(
    r"(dim|dimension|size|count|len|length|width|depth|height|level|head|layer|block|channel"
    r"|feature|group|rank|rate|ratio|prob|dropout|scale|range|grid|stride|patch|axis|index|position"
    r"|kind|type|mode|norm|init|activation|bias|weight|mask|padding|embedding|projection)s?"
    r"|(num|act|emb|embed|proj|pos|pool|pooling|mixer|mixing|merge|merging|masking|initializer|std"
    r"|initialization|patches|indices|multiplier|factor|temperature|schedule|budget|probability)"
)
_COUNTS = frozenset({"n", "nr", "num", "number", "count", "max", "min", "total"})
# Words before "key" in names that are lookup keys.
_LOOKUPS = frozenset(
    {"sort", "primary", "foreign", "public", "image", "label", "class", "caption", "column"}
    | {"query", "dict"}
)
_MOST_DIGITS = 18


def is_secret(name: str) -> bool:
    """Whether a key or variable is named like a secret: `wandb_api_key`, `MY_TOKEN`."""
    words = _words(name)
    return not _ends_harmless(name) and any(_is_secret_word(words, i) for i in range(len(words)))


def _ends_harmless(name: str) -> bool:
    """Whether the last word of a name marks a size or a part of a network."""
    return _HARMLESS_ENDS.fullmatch((_words(name) or [""])[-1]) is not None


def _is_secret_word(words: list[str], i: int) -> bool:
    """Whether the word at `i`, alone or joined with the previous one, marks a secret."""
    if (words[i] == "key" and words[max(i - 1, 0)] in _LOOKUPS) or _is_counted(words, i):
        return False
    if words[i] == "pwd":  # alone it is the working directory: PWD, OLDPWD
        return i > 0
    pair = "".join(words[i - 1 : i + 1]) if i else ""
    return bool(_SECRET.search(words[i]) or _PAIRS.fullmatch(pair))


def _is_counted(words: list[str], i: int) -> bool:
    """Whether the word at `i` is counted: `num_tokens`, `max_new_tokens`, `tokens_per_image`."""
    if words[i].endswith("s") and words[i + 1 : i + 2] == ["per"]:
        return True
    preceding = words[:i] if words[i].endswith("s") else words[max(i - 1, 0) : i]
    return not _COUNTS.isdisjoint(preceding)


def is_secret_place(parts: Sequence[str]) -> bool:
    """Whether a dotted key, given by its parts, is named like a secret or lies in one:
    `wandb.token`, `token.value`; not `token.dim`."""
    names = [part for part in parts if not part.isdecimal()]  # not list indices
    return not _ends_harmless((names or [""])[-1]) and any(map(is_secret, names))


def is_password(name: str) -> bool:
    """Whether a name is that of a password or an API key, which may consist of digits."""
    words = _words(name)
    if words[-1:] == ["pwd"]:
        return len(words) > 1
    return _PASSWORD.search("".join(words[-2:])) is not None


def is_harmless(value: Any) -> bool:
    """Whether a value is no secret under any name: not a string, or an empty one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 10**_MOST_DIGITS
    return not isinstance(value, str | bytes) or value in ("", "???")


def is_harmless_text(text: str) -> bool:
    """Whether the value of an environment variable is a number, true, false or null."""
    if text.lower() in ("", "true", "false", "null", "none"):
        return True
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", text, re.IGNORECASE) is not None


def is_secret_variable(name: str, value: str | None) -> bool:
    """Whether an environment variable holds a secret; an unset one counts by its name."""
    if not is_secret(name):
        return False
    harmless = value is not None and is_harmless_text(value) and len(value) <= _MOST_DIGITS
    return is_password(name) or not harmless


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without trailing digits: `HFToken2` is hf, token."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    words = (re.sub(r"\d+$", "", word) for word in re.split(r"[\W_]+", parted))
    return [word.lower() for word in words if word]
