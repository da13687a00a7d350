"""Which names are those of secrets, and which values are none whatever they are called.

A name is read word by word: `hf_token`, `authToken`, `WANDB_API_KEY`. As in any compound its last
word says what it is: `token_dim` is a size and `key_norm` a layer, `hf_token` is a token. Names of
counts (`num_tokens`, `tokens_per_image`) are no secrets either, nor are keys that look things up
(`sort_key`).

Numbers, booleans and null are no secrets under any name, and neither are lists of them. A number of
more than 18 digits is nobody's size, and counts as text. On the command line and in the environment
everything is text: there, digits under the name of a password or an API key count as text, too.
"""

import re
from collections.abc import Sequence
from typing import Any

# Words, or neighbouring words written together, that occur in names of secrets.
_SECRET = re.compile(
    r"passw|passphrase|passcode|sshpass|credential|webhook"
    r"|secret(?!ar|ion|iv|or)"  # not secretary, secretion
    r"|token(?!i[sz])"  # not tokenizer, tokenise
    r"|apikey|(access|private|auth)keys?$|^(key|pat|auth|dsn|bearer)$"
)
_PAIRS = re.compile(r"(api|access|private|auth|secret)keys?|databaseurl|.+pwd")
_PASSWORD = re.compile(r"passw|passphrase|passcode|sshpass|(api|access|private|auth|secret)key$")
# Last words of names that say how large, how many, which kind or which part of a network.
_HARMLESS_ENDS = re.compile(
    r"(dim|dimension|size|count|len|length|width|depth|height|level|head|layer|block|channel"
    r"|feature|group|rank|rate|ratio|prob|dropout|scale|range|grid|stride|patch|axis|index|position"
    r"|kind|type|mode|norm|init|activation|bias|weight|mask|padding|embedding|projection)s?"
    r"|(num|act|emb|embed|proj|pos|pool|pooling|mixer|mixing|merge|merging|masking|initializer|std"
    r"|initialization|patches|indices|multiplier|factor|temperature|schedule|budget|probability)"
)
_COUNTS = frozenset({"n", "nr", "num", "number", "count", "max", "min", "total"})
# What a key looks up, or is of: such keys are names.
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
    """Whether the last word of a name says that it is a size or a part of a network."""
    return _HARMLESS_ENDS.fullmatch((_words(name) or [""])[-1]) is not None


def _is_secret_word(words: list[str], i: int) -> bool:
    """Whether the word at `i`, by itself or with the one before it, is one of a secret."""
    if (words[i] == "key" and words[max(i - 1, 0)] in _LOOKUPS) or _is_counted(words, i):
        return False
    if words[i] == "pwd":  # alone it is a folder: PWD, OLDPWD
        return i > 0
    pair = "".join(words[i - 1 : i + 1]) if i else ""
    return bool(_SECRET.search(words[i]) or _PAIRS.fullmatch(pair))


def _is_counted(words: list[str], i: int) -> bool:
    """Whether a name says how many: `num_tokens`, `max_new_tokens`, `tokens_per_image`."""
    if words[i].endswith("s") and words[i + 1 : i + 2] == ["per"]:
        return True
    before = words[:i] if words[i].endswith("s") else words[max(i - 1, 0) : i]
    return not _COUNTS.isdisjoint(before)


def is_secret_place(parts: Sequence[str]) -> bool:
    """Whether a dotted key, given by its parts, leads to or into something named like a secret:
    `wandb.token`, `token.value`; not `token.dim`."""
    names = [part for part in parts if not part.isdecimal()]  # places in lists
    return not _ends_harmless((names or [""])[-1]) and any(map(is_secret, names))


def is_password(name: str) -> bool:
    """Whether a name is that of a password or an API key, for which digits may be chosen."""
    words = _words(name)
    if words[-1:] == ["pwd"]:
        return len(words) > 1
    return _PASSWORD.search("".join(words[-2:])) is not None


def is_harmless(value: Any) -> bool:
    """Whether a value is no secret whatever it is called: no text, or none that says anything."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 10**_MOST_DIGITS
    return not isinstance(value, str | bytes) or value in ("", "???")


def is_harmless_text(text: str) -> bool:
    """Whether a text of the environment is a number, true, false or null."""
    if text.lower() in ("", "true", "false", "null", "none"):
        return True
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", text, re.IGNORECASE) is not None


def is_secret_variable(name: str, value: str | None) -> bool:
    """Whether a variable of the environment holds a secret; one that is not set counts by name."""
    if not is_secret(name):
        return False
    harmless = value is not None and is_harmless_text(value) and len(value) <= _MOST_DIGITS
    return is_password(name) or not harmless


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without numbers at their ends: `HFToken2` is hf, token."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    words = (re.sub(r"\d+$", "", word) for word in re.split(r"[\W_]+", parted))
    return [word.lower() for word in words if word]
