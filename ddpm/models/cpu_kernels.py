"""This program's kernels for CPUs, in C, where a compiler is installed."""

import contextlib
import contextvars
import ctypes
import functools
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

logger = logging.getLogger(__name__)

SOURCES = ("winograd.c", "group_norm.c")

# for the same instructions as PyTorch takes, by the name that it gives to them
INSTRUCTIONS = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"),
}

# A function of C by its name, then its arguments and, at the end, the number of threads.
Call = Callable[..., None]

_images: contextvars.ContextVar[int] = contextvars.ContextVar("images")


@contextlib.contextmanager
def chosen_for(images: int) -> Iterator[None]:
    """Choose kernels as for batches of `images`, when memory is measured with fewer."""
    token = _images.set(images)
    try:
        yield
    finally:
        _images.reset(token)


def batch_size(x: Tensor) -> int:
    """The number of images by which a kernel for x is chosen."""
    return _images.get(len(x))


def c_compiler() -> str | None:
    """The path of the C compiler."""
    names = (os.environ.get("CC", "cc"), "gcc", "clang")
    return next(filter(None, map(shutil.which, names)), None)


def kernels_for(x: Tensor) -> Call | None:
    """Calls a kernel by its name, if x has a content to compute with."""
    return None if isinstance(x, FakeTensor) else cpu_kernels()


@functools.cache
def cpu_kernels() -> Call | None:
    """None without a C compiler, and where it fails. Compiling takes a second."""
    if sys.platform != "linux" or not (compiler := c_compiler()):
        return None
    try:
        library = compiled(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "%s cannot compile the kernels for CPUs (ddpm/models/*.c), so PyTorch's slower "
            "operations are taken (%s)",
            compiler,
            _reason(error),
        )
        return None

    def call(name: str, *arguments: Tensor | float | None) -> None:
        threads = ctypes.c_long(torch.get_num_threads())
        getattr(library, name)(*map(_in_c, arguments), threads)

    return call


def _reason(error: Exception) -> str:
    """The first line of what the compiler printed, or of the error."""
    printed = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
    return (printed or str(error)).strip().partition("\n")[0]


def _in_c(value: Tensor | float | None) -> ctypes.c_void_p | ctypes.c_long | ctypes.c_double:
    """A pointer to a tensor, or a number.

    Raises:
        TypeError: a tensor that the kernels would misread.
    """
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    if value is None:
        return ctypes.c_void_p(None)
    dense = value.is_contiguous() or value.is_contiguous(memory_format=torch.channels_last)
    if value.dtype != torch.float32 or not dense:
        raise TypeError(f"kernels in C read dense float32, not {value.dtype} {value.stride()}")
    return ctypes.c_void_p(value.data_ptr())


def compiled(compiler: str) -> ctypes.CDLL:
    """The C files of this folder as a library, which is on disk only until it is loaded.

    Raises:
        OSError, subprocess.SubprocessError: they cannot be compiled or loaded.
    """
    flags = INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ())
    sources = [str(Path(__file__).with_name(name)) for name in SOURCES]
    with tempfile.TemporaryDirectory(prefix="ddpm-") as folder:
        library = str(Path(folder, "library.so"))
        options = ["-O3", *flags, "-fopenmp", "-shared", "-fPIC", "-o", library]
        command = [compiler, *options, *sources]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return ctypes.CDLL(library)
