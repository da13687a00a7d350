"""Errors in the user's input, as opposed to bugs, and helpers for their messages."""

import difflib
from collections.abc import Iterable, Iterator, Sequence


class InputError(ValueError):
    """Invalid input of the user. Reported as its message alone, without a traceback."""


class NoSuchKey(InputError):
    """A key that does not exist; a file may have set it at the wrong place."""


class ReportedElsewhere(InputError):
    """An error that another process of the same run reports."""


def nearest(name: str, options: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the option most similar to `name`, or an empty string."""
    match = difflib.get_close_matches(name, [str(option) for option in options], n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and the chain of errors it was raised from; each once (chains can be cyclic)."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def one_line(error: BaseException, limit: int = 200) -> str:
    """The message of an exception on one line, safe to print; its type where it has no message."""
    return shown(" ".join(str(error).split()), limit) or type(error).__name__


def shown(value: object, limit: int = 80) -> str:
    """Untrusted text made safe for a message: on one line, without control characters, cut to
    `limit` characters."""
    text = str(value)
    cut = text[:limit] + ("..." if len(text) > limit else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def listed(texts: Sequence[str], most: int) -> str:
    """`a, b, and 3 more`: the first `most` texts and the number of the others."""
    more = f", and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
