"""This program's kernels for CPUs, in C, where a compiler is installed."""

import ctypes
import functools
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

logger = logging.getLogger(__name__)

# for the same instructions as PyTorch takes, by the name that it gives to them
INSTRUCTIONS = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"),
}

Transform = Callable[[int, Tensor, Tensor, Tensor | None, tuple[int, ...]], None]


def c_compiler() -> str | None:
    """The path of the C compiler."""
    names = (os.environ.get("CC", "cc"), "gcc", "clang")
    return next(filter(None, map(shutil.which, names)), None)


def transform_for(x: Tensor) -> Transform | None:
    """`transform` of winograd.c: (number, from, to, bias, shape), if it can compute with x."""
    return None if isinstance(x, FakeTensor) else compiled_transform()


@functools.cache
def compiled_transform() -> Transform | None:
    """None without a C compiler, and where it fails. Compiling takes a third of a second."""
    if sys.platform != "linux" or not (compiler := c_compiler()):
        return None
    try:
        function = compiled(compiler, "winograd.c").transform
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "%s cannot compile ddpm/models/winograd.c, so slower convolutions are taken (%s)",
            compiler,
            (getattr(error, "stderr", None) or str(error)).strip().partition("\n")[0],
        )
        return None
    pointers, sizes = 3 * (ctypes.c_void_p,), 4 * (ctypes.c_long,)
    function.argtypes = (ctypes.c_int, *pointers, *sizes, ctypes.c_int)
    function.restype = None

    def transform(
        number: int, tensor: Tensor, out: Tensor, bias: Tensor | None, shape: tuple[int, ...]
    ) -> None:
        pointer = None if bias is None else bias.data_ptr()
        threads = torch.get_num_threads()
        function(number, tensor.data_ptr(), out.data_ptr(), pointer, *shape, threads)

    return transform


def compiled(compiler: str, name: str) -> ctypes.CDLL:
    """A file of this folder as a library, which is on disk only until it is loaded.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be compiled or loaded.
    """
    flags = INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ())
    with tempfile.TemporaryDirectory(prefix="ddpm-") as folder:
        library = Path(folder, "library.so")
        source = Path(__file__).with_name(name)
        command = [compiler, "-O2", *flags, "-fopenmp", "-shared", "-fPIC", "-o"]
        subprocess.run(
            [*command, library, source], check=True, capture_output=True, text=True, timeout=60
        )
        return ctypes.CDLL(str(library))
