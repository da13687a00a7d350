"""Mistakes of the person at the keyboard, told apart from mistakes of the program."""

import difflib
from collections.abc import Iterable, Iterator, Sequence


class InputError(ValueError):
    """Something the user gave cannot be used. Shown as its message alone, without a traceback."""


class NoSuchKey(InputError):
    """A key that does not exist; perhaps a file put it in the wrong place."""


class ToldElsewhere(InputError):
    """What another process of the same run has told already."""


def nearest(name: str, options: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the option most like `name`, or an empty string."""
    match = difflib.get_close_matches(name, [str(option) for option in options], n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on; each once, for chains can be circles."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def one_line(error: BaseException, limit: int = 200) -> str:
    """The message of an exception on one line, safe to print; its type where it has no message."""
    return shown(" ".join(str(error).split()), limit) or type(error).__name__


def shown(value: object, limit: int = 80) -> str:
    """Somebody else's text as it may stand in a message: on one line, without control characters,
    and cut where it is longer than `limit`."""
    text = str(value)
    cut = text[:limit] + ("..." if len(text) > limit else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def listed(texts: Sequence[str], most: int) -> str:
    """`a, b, and 3 more`: texts in a row, of which only the first so many are shown."""
    more = f", and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
