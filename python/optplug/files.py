"""Files that take another's place in one go, so that a path always has a whole one.  Knows no torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import resource
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

_SHOWN = 50  # characters of a file's name that its temporary file's has: names may be 255 bytes long
_STALE = 24 * 3600  # seconds
_TRIES = 100
#: What a file system says that cannot sync a file, rather than that it has failed to.
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
_ACLS = ("system.posix_acl_access", "system.nfs4_acl")


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """Open a new file for writing that takes a path's place at the end, or is gone if anything fails.

    It lies beside under a name of its own, so savers to one path do not meet: the last to end stays.  A
    symbolic link stays one, and the file that it names is replaced; permissions stay as they are there.

    Raises:
        OSError: the system refuses, or at the path is something else than a file.
    """
    target, old = _find(path)
    with _beside(target, 0o666 if old is None else 0o600) as (temporary, file):
        yield file
        file.flush()
        if old is not None:
            _make_like(file.fileno(), target, old)
        _sync(file)
        os.replace(temporary, target)  # noqa: PTH105 (a path of bytes that are no UTF-8 stays as it is)
    _sync_folder(os.path.dirname(target))  # noqa: PTH120


@contextlib.contextmanager
def joining(path: str) -> Iterator[BinaryIO]:
    """Open a file that another process has begun, write to it as well, and put that on the disk at the end.

    Raises:
        OSError: the system refuses.
    """
    with _opened(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC) as file:
        yield file
        file.flush()
        _sync(file)


def write_at(file: BinaryIO, data: memoryview, place: int) -> None:
    """Write bytes at a place of an open file, past its buffer: short runs may be many.

    Raises:
        OSError: the system refuses.
    """
    _check_limit(place + data.nbytes)
    while data:
        done = os.pwrite(file.fileno(), data, place)
        data, place = data[done:], place + done


def _opened(path: str, how: int, mode: int = 0) -> BinaryIO:
    return io.BufferedWriter(_Limited(path, "wb", opener=lambda path, _: os.open(path, how, mode)))


def _sync(file: BinaryIO) -> None:
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _find(path: str) -> tuple[str, os.stat_result | None]:
    """Return the path of the file that a path leads to, and how that file is; None if there is none yet.

    Links that the system does not follow, such as others' in a folder of all, are none that we follow: so
    one that is put there while we look is looked at again.
    """
    for _ in range(_TRIES):
        found = _follow(path)
        target = os.path.realpath(path)
        if _is_same(found, _follow(path)) and _is_same(found, _follow(target)):
            return target, found
    raise OSError(errno.EBUSY, "other processes keep replacing it")


def _is_same(found: os.stat_result | None, other: os.stat_result | None) -> bool:
    return os.path.samestat(found, other) if found and other else found is other


def _follow(path: str) -> os.stat_result | None:
    """Return how the file that a path leads to is, None if there is none yet, and refuse what is no file."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        target = os.path.realpath(path)
        if os.path.basename(path) in ("", ".", "..") or os.path.islink(target):  # noqa: PTH114, PTH119
            raise
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it must be a file, not a device, pipe or socket")
    link = path
    while os.path.islink(link):  # noqa: PTH114
        folder = os.path.realpath(os.path.dirname(link))  # noqa: PTH120
        if folder.startswith("/proc/"):
            raise OSError(errno.EINVAL, "it must be a file's name, not a link to an open file")
        link = os.path.join(folder, os.readlink(link))  # noqa: PTH115, PTH118
    return found


@contextlib.contextmanager
def _beside(target: str, mode: int) -> Iterator[tuple[str, BinaryIO]]:
    """Make a file beside another, under a name that nobody could foresee, and lock it while it is written."""
    folder, name = os.path.split(target)
    prefix = f"{name[:_SHOWN]}.optplug-"
    how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(_TRIES):
        temporary = os.path.join(folder, f"{prefix}{os.urandom(8).hex()}.tmp")  # noqa: PTH118
        try:
            file = _opened(temporary, how, mode)
        except FileExistsError:
            continue
        try:
            # A save that looks for what others have left may have taken it for that, and removes it.
            if _lock(file.fileno(), fcntl.LOCK_EX) is not False and os.path.lexists(temporary):
                _sweep(folder, prefix, os.fstat(file.fileno()))
                yield temporary, file
                return
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108 (after a failure: otherwise it has its other name)
            with contextlib.suppress(OSError):
                file.close()
    raise FileExistsError(errno.EEXIST, "other processes keep removing the new file")


class _Limited(io.FileIO):
    """A file that keeps to ``ulimit -f``, beyond which the system would end the process by a signal."""

    def write(self, data: Any) -> int:
        _check_limit(self.tell() + memoryview(data).nbytes)
        return super().write(data)


def _check_limit(end: int) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and end > limit:
        raise OSError(errno.EFBIG, f"{os.strerror(errno.EFBIG)}: ulimit -f allows {limit} bytes")


def _lock(descriptor: int, kind: int) -> bool | None:
    """Lock a file and tell whether that went; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sweep(folder: str, prefix: str, own: os.stat_result) -> None:
    """Remove what this user's killed saves have left: files that nobody has locked."""
    ours = re.compile(re.escape(prefix) + r"[0-9a-f]{16}\.tmp")
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if ours.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_left(entry.path, own)


def _remove_if_left(path: str, own: os.stat_result) -> None:
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != own.st_uid or os.path.samestat(found, own):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        is_free = _lock(descriptor, fcntl.LOCK_SH)
        if is_free is None:
            is_free = own.st_mtime - found.st_mtime > _STALE
        # Its process may have put it into its place meanwhile.
        if is_free and os.path.samestat(os.lstat(path), os.fstat(descriptor)):
            os.unlink(path)  # noqa: PTH108
    finally:
        os.close(descriptor)


def _make_like(descriptor: int, target: str, old: os.stat_result) -> None:
    """Give a new file the owner, group, ACL, attributes and mode of the one that it replaces, as allowed.

    Where the group or the ACL cannot be kept, the group gets what everybody has, and nobody gets more.
    """
    with contextlib.suppress(OSError):
        os.fchown(descriptor, -1, old.st_gid)
    with contextlib.suppress(OSError):
        os.fchown(descriptor, old.st_uid, -1)
    mode = stat.S_IMODE(old.st_mode) & 0o777
    is_kept = os.fstat(descriptor).st_gid == old.st_gid
    if not (_copy_attributes(descriptor, target, with_acl=is_kept) and is_kept):
        mode &= 0o707 | (mode & 0o007) << 3
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, mode)


def _copy_attributes(descriptor: int, target: str, with_acl: bool) -> bool:
    """Copy extended attributes, and tell whether there is no ACL that was not copied."""
    if not hasattr(os, "listxattr"):
        return True
    try:
        names = os.listxattr(target)
    except OSError:
        return True  # the file system has none
    is_done = True
    for name in names:
        if name in _ACLS or name.startswith("user.") or name == "security.selinux":
            try:
                if name in _ACLS and not with_acl:
                    raise PermissionError
                os.setxattr(descriptor, name, os.getxattr(target, name))
            except OSError:
                is_done = is_done and name not in _ACLS
    if not is_done or _ACLS[0] not in names:
        with contextlib.suppress(OSError):
            os.removexattr(descriptor, _ACLS[0])  # which it has from its folder
    return is_done


def _sync_folder(path: str) -> None:
    """Put a folder's names on the disk, where that can be done: the file has its own by then."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
