"""What ends a run from outside: Ctrl-C, SIGTERM, a disk that is full or cannot be written to."""

import errno
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}
LEAST_ROOM = 1 << 20  # bytes; PyTorch's own files say only that a write failed


class Terminated(KeyboardInterrupt):
    """SIGTERM, what schedulers and containers send before they kill."""


def exit_at_once() -> None:
    """While libraries are imported there is nothing to lose, and a traceback would say nothing."""

    def leave(number, frame):
        os.write(2, b"\nrun_qa.py: interrupted before it began.\n")
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


@contextmanager
def as_exceptions() -> Iterator[None]:
    """Within, Ctrl-C raises KeyboardInterrupt and SIGTERM Terminated; on another than the main thread, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def terminate(number, frame):
        if os.getpid() == owner:
            raise Terminated
        signal.signal(number, signal.SIG_DFL)  # a forked helper, which a library ends this way
        os.kill(os.getpid(), number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def storage_problem(error: Exception, folder: Path) -> str | None:
    """What is wrong with the disk under `folder`, and what to do about it; None if `error` does not come from there."""
    written = re.search(r"os error (\d+)", str(error))  # what safetensors says
    number = int(written[1]) if written else getattr(error, "errno", None)
    room = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if number in NOT_WRITABLE and str(folder) in str(getattr(error, "filename", "")):
        return f"{error.filename} cannot be written to ({error.strerror}): name another folder by --output_dir"
    if number in NO_ROOM or shutil.disk_usage(room).free < LEAST_ROOM:
        return f"no room is left for {folder} ({' '.join(str(error).split())[:120]}): free some, or name another --output_dir"
    return None
