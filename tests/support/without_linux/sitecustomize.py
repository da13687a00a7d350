"""Removes the Linux-only functions of Python, /proc, /sys and the start of processes by a fork, as
on macOS. Python imports this file at its start where the folder is on PYTHONPATH."""

import builtins
import fcntl
import functools
import io
import multiprocessing
import os
import resource
import select
import signal
import socket
import time

LINUX_ONLY = {
    fcntl: "F_OFD_SETLK F_OFD_SETLKW F_OFD_GETLK F_SETPIPE_SZ F_GETPIPE_SZ F_ADD_SEALS F_NOTIFY",
    os: "sched_getaffinity sched_setaffinity posix_fadvise posix_fallocate fdatasync pipe2 "
    "memfd_create eventfd getrandom copy_file_range splice O_DIRECT O_PATH O_TMPFILE O_NOATIME "
    "getxattr setxattr listxattr removexattr pidfd_open waitid preadv pwritev unshare setns",
    resource: "prlimit",
    select: "epoll",
    signal: "SIGRTMIN SIGRTMAX SIGSTKFLT SIGPWR SIGPOLL sigtimedwait sigwaitinfo",
    socket: "AF_NETLINK AF_VSOCK AF_PACKET SOCK_CLOEXEC SOCK_NONBLOCK",
    time: "CLOCK_BOOTTIME CLOCK_TAI pthread_getcpuclockid",
}


def without_proc(function):
    @functools.wraps(function)
    def call(path=".", *arguments, **keywords):
        text = "" if isinstance(path, int) else os.fsdecode(path)
        if text in ("/proc", "/sys") or text.startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(2, "No such file or directory", text)
        return function(path, *arguments, **keywords)

    return call


for module, names in LINUX_ONLY.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
builtins.open = io.open = without_proc(io.open)
for name in ("stat", "lstat", "readlink", "listdir", "scandir", "open"):
    original = getattr(os, name)
    replaced = without_proc(original)
    setattr(os, name, replaced)
    for functions in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if original in functions:
            functions.add(replaced)
multiprocessing.set_start_method("spawn", force=True)
