"""Files from strangers: read as plain data, or refused with a reason, and never as code.

What may come out is dicts, lists, texts, numbers and dense tensors. Each format is looked through
in a way that costs no more than its bytes before anything is made of it: a file of some hundred
bytes can stand for gigabytes, or for a walk that never ends.
"""

from ddpm.runner.safe_io.plain import MAX_NODES, MAX_TEXT, Refused, check_plain
from ddpm.runner.safe_io.torch_archive import check_archive, read_archive
from ddpm.runner.safe_io.yaml_json import MAX_YAML, parse_yaml, read_json, read_yaml

__all__ = [
    "MAX_NODES",
    "MAX_TEXT",
    "MAX_YAML",
    "Refused",
    "check_archive",
    "check_plain",
    "parse_yaml",
    "read_archive",
    "read_json",
    "read_yaml",
]
