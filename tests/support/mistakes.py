"""Helpers of the tests of bad input: command lines on top of a tiny run, and valid answers."""

from support.base import TINY


def arguments(row):
    """What a row means, on top of a tiny run: nothing takes long where a mistake goes unnoticed."""
    words = row.split(" ")
    flags = [word for word in words if word.startswith("-")]
    named = {word.split("=")[0] for word in words}
    if "resume" in named:
        return words
    gone = named & {"job", "sampler"} | (
        {"model=convnet"} if "job=train_classifier" in words else set()
    )
    tiny = [word for word in TINY if not {word, word.split(".")[0]} & gone]
    return [*flags, *tiny, *(word for word in words if word not in flags)]


def contents(folder):
    """Every file and folder, but for what libraries keep in a home."""
    paths = [p for p in folder.rglob("*") if not p.relative_to(folder).parts[0].startswith(".")]
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in paths
    }


def assert_answered(status, err, *expected):
    assert status == 2, err
    assert 1 <= len(err.splitlines()) <= 5, err
    assert "Traceback" not in err
    assert "Error in call to target" not in err, "a message for who wrote the program"
    for text in expected:
        assert text in err
