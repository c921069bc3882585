"""Atomic writes: a crash, a full disk or Ctrl-C leaves the old files unchanged.

A file is written beside its destination, flushed and renamed. A rename replaces whatever is there by a regular file, so
a symbolic link is followed to its target, and a folder, a device, a pipe or a socket is refused.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Without fcntl no file is locked, and none is swept.
fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

_PREFIX = ".hiermt-writing-"
_TEMPORARY = re.compile(re.escape(_PREFIX) + r"[0-9a-f]{16}(\.[^/]*)?")
_MOST_LINKS = 40


class _Temporary(NamedTuple):
    """A file being written: path of the caller, resolved destination, temporary path, and the handle that locks it."""

    named: Path
    target: Path
    path: Path
    handle: int | None


def check_writable(*paths: str | os.PathLike[str]) -> None:
    """Raises for destinations that :func:`atomic_write` would refuse, before the work whose result they will hold.

    Raises:
        IsADirectoryError: the path is a folder.
        NotADirectoryError: a part of the path in front of the name is not a folder.
        PermissionError: the file or its folder cannot be written to.
        OSError: the path is a device, a pipe, a socket, or a loop of links.
    """
    for path in paths:
        _destination(Path(path))


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; if the block succeeds, that file replaces `path`.

    See :func:`atomic_write_all`.
    """
    with atomic_write_all([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def atomic_write_all(paths: Sequence[str | os.PathLike[str]]) -> Iterator[list[Path]]:
    """Yields a temporary path for each of `paths`; if the block succeeds, those files replace them.

    All files are flushed before the first is renamed. If the block or a flush fails, the temporary files go and
    the old files remain. A new file gets the permissions of the one that it replaces. Files that killed processes left
    in the same folders are removed.

    Raises:
        OSError: as :func:`check_writable`, or the files cannot be written, as on a full disk; `filename` is the path
            asked for.
    """
    temporaries: list[_Temporary] = []
    unchanged = True
    try:
        # Check all before the first is created.
        destinations = [(Path(path), _destination(Path(path))) for path in paths]
        for path, target in destinations:
            temporaries.append(_create(path, target))
        yield [temporary.path for temporary in temporaries]
        for temporary in temporaries:
            _finish(temporary)
        for temporary in temporaries:
            os.replace(temporary.path, temporary.target)
            unchanged = False
        for folder in {temporary.target.parent for temporary in temporaries}:
            _flush_folder(folder)
    except OSError as error:
        named = {str(temporary.path): temporary.named for temporary in temporaries}
        # An OSError of a write has no filename.
        about = named.get(str(error.filename)) if error.filename else next(iter(named.values()), None)
        if about is None:
            raise
        raise _failed(error, about, unchanged) from error
    finally:
        for temporary in temporaries:
            with contextlib.suppress(OSError):
                temporary.path.unlink(missing_ok=True)
            if temporary.handle is not None:
                os.close(temporary.handle)


@contextlib.contextmanager
def restore_on_error(*paths: Path) -> Iterator[None]:
    """Restores the files at `paths` if the block raises, also after it replaced some of them."""
    targets = [path.resolve() for path in paths]
    # While a file is locked, the second name that a killed process left of it could not be swept.
    for folder in {target.parent for target in targets}:
        _sweep(folder)
    with contextlib.ExitStack() as stack:
        kept: dict[Path, Path] = {}
        new = [target for target in targets if not target.exists()]
        for target in targets:
            if target.is_file():
                kept[target] = stack.enter_context(_second_name(target))
        try:
            yield
        except BaseException:
            for target, copy in kept.items():
                os.replace(copy, target)
            for target in new:
                target.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _second_name(target: Path) -> Iterator[Path]:
    """Another name of a file, or a copy, which the next write sweeps if this process is killed."""
    name = _temporary_name(target)
    with open(target, "rb") as file, contextlib.ExitStack() as stack:
        # Both names are of one file, so that this lock keeps other processes from sweeping the second.
        _lock(file.fileno(), shared=True)
        try:
            os.link(target, name)
        except OSError:  # hard links are not supported
            shutil.copy2(target, name)
            _lock(stack.enter_context(open(name, "rb")).fileno(), shared=True)
        try:
            yield name
        finally:
            name.unlink(missing_ok=True)


def _temporary_name(target: Path) -> Path:
    return target.parent / f"{_PREFIX}{secrets.token_hex(8)}{target.suffix[:32]}"


def _destination(path: Path) -> Path:
    """The file that a write to `path` replaces or creates: itself, or the target of its link."""
    target = _follow(path)
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        _check_folder(path, target.parent)
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder; give the path of a file", str(path))
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise OSError(errno.EINVAL, f"is {kind}, which a file would replace; give the path of a file", str(path))
    if not os.access(target, os.W_OK):
        raise PermissionError(
            errno.EACCES, "is write-protected; give another path or change its permissions", str(path)
        )
    _check_folder(path, target.parent)
    return target


def _follow(path: Path) -> Path:
    """`path` with its links resolved, those of the last component one by one."""
    current = str(path)
    for _ in range(_MOST_LINKS):
        folder = os.path.realpath(os.path.dirname(current) or os.curdir)
        # /dev/stdout may link to a regular file that has other writers.
        if folder == "/dev" or folder.startswith("/proc/"):
            raise OSError(errno.EINVAL, "is a device or stream; give the path of a file", str(path))
        current = os.path.join(folder, os.path.basename(current))
        if not os.path.islink(current):
            return Path(current)
        current = os.path.join(folder, os.readlink(current))
    raise OSError(errno.ELOOP, "is a symbolic link that leads back to itself; remove it", str(path))


def _check_folder(path: Path, folder: Path) -> None:
    """Raises unless a file can be created in `folder`, or in its nearest existing ancestor."""
    if not folder.exists() and path.is_symlink():
        reason = f"is a symbolic link into {folder}, which is not there; make that folder or remove the link"
        raise FileNotFoundError(errno.ENOENT, reason, str(path))
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder; give another path", str(path))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"the folder {folder} cannot be written to; give another path", str(path))


def _create(path: Path, target: Path) -> _Temporary:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        while True:
            temporary = _temporary_name(target)
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            _lock(handle)
            # Another process may have swept the file before it was locked.
            if os.fstat(handle).st_nlink:
                break
            os.close(handle)
    except OSError as error:
        raise _failed(error, path, unchanged=True) from error
    with contextlib.suppress(OSError):
        # A file with restricted permissions must have them while it is written, too.
        os.chmod(temporary, stat.S_IMODE(target.stat().st_mode) | 0o600)
    if fcntl is None:  # Windows cannot rename an open file
        os.close(handle)
        return _Temporary(path, target, temporary, None)
    return _Temporary(path, target, temporary, handle)


def _finish(temporary: _Temporary) -> None:
    """Sets the permissions of the file that is replaced, and flushes."""
    with contextlib.suppress(FileNotFoundError):
        old = temporary.target.stat()
        with contextlib.suppress(OSError, AttributeError):
            os.chown(temporary.path, old.st_uid if os.geteuid() == 0 else -1, old.st_gid)
        os.chmod(temporary.path, stat.S_IMODE(old.st_mode))
    # Open the path again: the block may have replaced the file.
    with open(temporary.path, "rb") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Flushes the new names, where the system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sweep(folder: Path) -> None:
    """Removes the temporary files of killed processes; those of running processes are locked."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_unless_locked(entry.path)


def _remove_unless_locked(path: str) -> None:
    handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        if stat.S_ISREG(os.fstat(handle).st_mode) and _lock(handle, wait=False):
            os.unlink(path)
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool = True, shared: bool = False) -> bool:
    """Locks a file until it is closed or the process ends; whether that succeeded."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # locked by another process, or locks are not supported
        return False
    return True


def _failed(error: OSError, path: Path, unchanged: bool) -> OSError:
    """The error with the path of the caller in place of the temporary one."""
    reason = error.strerror or str(error)
    return OSError(error.errno or errno.EIO, f"{reason}; nothing was changed" if unchanged else reason, str(path))
