"""A file that replaces another: whole at any moment, and nothing else at the path or beside it is touched."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from optplug import files

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of other users")
OURS = "c.pt.optplug-0123456789abcdef.tmp"


def save(path: os.PathLike | str, content: bytes = b"new") -> None:
    with files.replacing(os.fspath(path)) as file:
        file.write(content)


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save_as_nobody(path: pathlib.Path, content: bytes = b"new") -> None:
    """Save as a user who may do little."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            save(path, content)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def nobodys():
    """A folder of nobody's that nobody can reach: pytest's are the user's alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, NOBODY, NOBODY)
        yield pathlib.Path(folder)


# ---- what lies beside ----


def test_what_has_our_old_temporary_name_is_neither_followed_nor_lost_nor_waited_for(tmp_path):
    (tmp_path / "theirs").write_bytes(b"theirs")
    beside = tmp_path / "c.pt.tmp"
    for make in (
        lambda: beside.symlink_to("theirs"),
        lambda: beside.hardlink_to(tmp_path / "theirs"),
        lambda: beside.write_bytes(b"unrelated"),
        lambda: os.mkfifo(beside),
    ):
        make()
        before = beside.lstat()
        save(tmp_path / "c.pt")
        assert (tmp_path / "c.pt").read_bytes() == b"new"
        assert os.path.samestat(beside.lstat(), before)
        assert (tmp_path / "theirs").read_bytes() == b"theirs"
        beside.unlink()
    assert names(tmp_path) == ["c.pt", "theirs"]


def test_a_name_that_is_taken_is_not_written_to(tmp_path, monkeypatch):
    (tmp_path / "theirs").write_bytes(b"theirs")
    guessed, fresh = bytes(8), bytes(range(8))
    left = [guessed, fresh]
    monkeypatch.setattr(os, "urandom", lambda _: left.pop(0))
    (tmp_path / f"c.pt.optplug-{guessed.hex()}.tmp").symlink_to("theirs")
    save(tmp_path / "c.pt")
    assert not left
    assert (tmp_path / "c.pt").read_bytes() == b"new"
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def test_what_a_killed_save_has_left_is_removed_and_nothing_else(tmp_path):
    others = ["c.pt.optplug-0.tmp", "d.pt.optplug-0123456789abcdef.tmp", f"x{OURS}", f"{OURS}.old"]
    for name in (OURS, *others):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "c.pt.optplug-1123456789abcdef.tmp").symlink_to(others[0])
    os.mkfifo(tmp_path / "c.pt.optplug-2123456789abcdef.tmp")
    save(tmp_path / "c.pt")
    kept = ["c.pt", "c.pt.optplug-1123456789abcdef.tmp", "c.pt.optplug-2123456789abcdef.tmp"]
    assert names(tmp_path) == sorted([*kept, *others])


def test_what_a_save_that_goes_on_has_made_is_left(tmp_path):
    with (tmp_path / OURS).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        save(tmp_path / "c.pt")
        assert names(tmp_path) == ["c.pt", OURS]
    save(tmp_path / "c.pt")
    assert names(tmp_path) == ["c.pt"]


@as_root
def test_what_another_users_save_has_left_is_left_and_in_nobodys_way(tmp_path):
    (tmp_path / OURS).write_bytes(b"x")
    os.chown(tmp_path / OURS, NOBODY, NOBODY)
    save(tmp_path / "c.pt")
    assert names(tmp_path) == ["c.pt", OURS]


# ---- what is at the path ----


def make_socket(path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fspath(path))


@pytest.mark.parametrize("through", ["itself", "a link"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "loop"])
def test_what_is_no_file_is_refused_and_stays(kind, through, tmp_path):
    there = tmp_path / "there"
    if kind == "device":
        try:
            os.mknod(there, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null is
        except PermissionError:
            pytest.skip("no device can be made here: root can")
    else:
        make = {"pipe": os.mkfifo, "socket": make_socket, "folder": os.mkdir, "loop": there.symlink_to}[kind]
        make(there)
    path = there
    if through == "a link":
        path = tmp_path / "link"
        path.symlink_to("there")
    before = there.lstat()
    with pytest.raises(OSError, match=r"must be a file|is a directory|symbolic links"):
        save(path)
    assert os.path.samestat(there.lstat(), before)
    assert "new" not in names(tmp_path)
    assert len(names(tmp_path)) == 1 + (through == "a link")


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/c.pt")
    for content in (b"first", b"second"):
        save(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there/c.pt").read_bytes() == content
    assert names(tmp_path) == ["link", "there"]
    assert names(tmp_path / "there") == ["c.pt"]


@pytest.mark.parametrize("existed", [True, False])
def test_a_link_that_is_put_there_meanwhile_is_not_followed_unless_the_system_does(
    existed, tmp_path, monkeypatch
):
    path, other, usual = tmp_path / "c.pt", tmp_path / "other", os.path.realpath
    other.write_bytes(b"precious")
    if existed:
        path.write_bytes(b"old")

    def realpath(asked):
        if asked == str(path) and not path.is_symlink():
            path.unlink(missing_ok=True)
            path.symlink_to(other)
        return usual(asked)

    def refusing(asked, *arguments, **named):  # as Linux does for others' links in folders like /tmp
        if asked == str(path) and path.is_symlink() and named.get("follow_symlinks", True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return stat_usually(asked, *arguments, **named)

    stat_usually = os.stat
    monkeypatch.setattr(os.path, "realpath", realpath)
    monkeypatch.setattr(os, "stat", refusing)
    with pytest.raises(PermissionError):
        save(path)
    assert other.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["", ".", "new/", "new/.", "nowhere/c.pt", "loop"])
def test_a_path_that_names_no_file_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("nowhere/../loop")
    with pytest.raises(OSError, match=r"No such file|is a directory"):
        save(name)
    assert names(tmp_path) == ["loop"]


def test_a_file_that_is_open_is_not_taken_for_its_name(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        path = f"/dev/fd/{log.fileno()}"
        if not os.path.exists(path):  # noqa: PTH110
            pytest.skip("this system has no /dev/fd")
        (tmp_path / "link").symlink_to(path)
        for tried in (path, tmp_path / "link"):
            with pytest.raises(OSError, match="a link to an open file"):
                save(tried)
        assert os.path.samestat(os.fstat(log.fileno()), (tmp_path / "log").stat())
        (tmp_path / "log").unlink()
        with pytest.raises(OSError, match="a link to an open file"):
            save(path)
    assert names(tmp_path) == ["link"]


@pytest.mark.parametrize(
    "name",
    ["n" * 255, "\N{EURO SIGN}" * 85, os.fsdecode(b"\xff" * 255), "\U0001f600" * 63],
    ids=["of 1 byte", "of 3 bytes", "not UTF-8", "of 4 bytes"],
)
def test_the_longest_names_work(name, tmp_path):
    for content in (b"first", b"second"):
        save(tmp_path / name, content)
        assert (tmp_path / name).read_bytes() == content
    assert names(tmp_path) == [name]


# ---- permissions ----


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444, 0o666])
def test_the_mode_stays(mode, tmp_path):
    save(tmp_path / "c.pt")
    (tmp_path / "c.pt").chmod(mode)
    with files.replacing(os.fspath(tmp_path / "c.pt")) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600  # nobody sees more in between
        file.write(b"second")
    assert stat.S_IMODE((tmp_path / "c.pt").stat().st_mode) == mode
    assert (tmp_path / "c.pt").read_bytes() == b"second"


@as_root
def test_owner_and_group_stay(tmp_path):
    save(tmp_path / "c.pt")
    os.chown(tmp_path / "c.pt", 12345, 54321)
    (tmp_path / "c.pt").chmod(0o640)
    save(tmp_path / "c.pt")
    found = (tmp_path / "c.pt").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 54321, 0o640)


@as_root
def test_where_the_group_cannot_be_kept_another_gets_no_right_for_it(nobodys):
    path = nobodys / "c.pt"
    path.write_bytes(b"old")
    os.chown(path, NOBODY, 54321)
    path.chmod(0o660)
    save_as_nobody(path)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, NOBODY, 0o600)
    assert path.read_bytes() == b"new"


def acl(mask: int, named: int | None = None) -> bytes:
    """Return an access control list as Linux has it: the owner's rw, and rights of one user more."""
    entries = [(0x01, 6, 0xFFFFFFFF)]
    entries += [(0x02, named, 12345)] if named is not None else []
    entries += [(0x04, 0, 0xFFFFFFFF)]
    entries += [(0x10, mask, 0xFFFFFFFF)] if named is not None else []
    entries += [(0x20, 0, 0xFFFFFFFF)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def set_attribute(path: pathlib.Path, name: str, value: bytes) -> None:
    if not hasattr(os, "setxattr"):
        pytest.skip("this system has no extended attributes that Python can set")
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"this file system has no {name}: {error.strerror}")


def test_the_access_control_list_and_attributes_stay(tmp_path):
    path = tmp_path / "c.pt"
    save(path)
    set_attribute(path, "user.note", b"mine")
    set_attribute(path, "system.posix_acl_access", acl(6, named=6))
    before = {name: os.getxattr(path, name) for name in ("user.note", "system.posix_acl_access")}
    mode = path.stat().st_mode
    save(path, b"second")
    assert {name: os.getxattr(path, name) for name in before} == before
    assert path.stat().st_mode == mode


def test_a_file_without_an_access_control_list_gets_none_from_its_folder(tmp_path):
    path = tmp_path / "c.pt"
    save(path)
    path.chmod(0o660)
    set_attribute(tmp_path, "system.posix_acl_default", acl(6, named=6))
    save(path, b"second")
    assert "system.posix_acl_access" not in os.listxattr(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


# ---- what the file system cannot do ----


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, 524])
def test_without_locks_files_are_saved_and_what_may_be_in_use_is_left(code, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / OURS).write_bytes(b"x")
    save(tmp_path / "c.pt")
    assert (tmp_path / "c.pt").read_bytes() == b"new"
    assert names(tmp_path) == ["c.pt", OURS]
    long_ago = time.time() - 2 * files._STALE
    os.utime(tmp_path / OURS, (long_ago, long_ago))
    save(tmp_path / "c.pt")
    assert names(tmp_path) == ["c.pt"]


def test_a_file_system_that_gives_no_lock_is_an_error_and_no_endless_loop(tmp_path, monkeypatch):
    def flock(*_):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(FileExistsError, match="keep removing the new file"):
        save(tmp_path / "c.pt")
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_synced_has_the_file_all_the_same(code, tmp_path, monkeypatch):
    sync = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save(tmp_path / "c.pt")
    assert (tmp_path / "c.pt").read_bytes() == b"new"


@as_root
def test_a_folder_that_cannot_be_read_has_the_file_all_the_same(nobodys):
    nobodys.chmod(0o300)
    for content in (b"first", b"second"):
        save_as_nobody(nobodys / "c.pt", content)
        assert (nobodys / "c.pt").read_bytes() == content
    assert names(nobodys) == ["c.pt"]


@pytest.mark.parametrize(
    ("code", "is_lost"), [(errno.EINVAL, False), (errno.EIO, True), (errno.ENOSPC, True)]
)
def test_a_file_that_did_not_reach_the_disk_replaces_none(code, is_lost, tmp_path, monkeypatch):
    save(tmp_path / "c.pt", b"old")

    def fsync(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"error|space") if is_lost else contextlib.nullcontext():
        save(tmp_path / "c.pt")
    assert (tmp_path / "c.pt").read_bytes() == (b"old" if is_lost else b"new")
    assert names(tmp_path) == ["c.pt"]


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    save(tmp_path / "c.pt", b"old")

    def fail() -> None:
        with files.replacing(os.fspath(tmp_path / "c.pt")) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "c.pt").read_bytes() == b"old"
    assert names(tmp_path) == ["c.pt"]


def test_a_limit_of_file_sizes_is_an_error_and_no_signal(tmp_path):
    save(tmp_path / "c.pt", b"old")
    code = """
import resource, signal, sys
from optplug import files
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # as a host that is no Python has it
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
def save(size):
    with files.replacing(sys.argv[1]) as file:
        for _ in range(10):
            file.write(bytes(size // 10))
save(100_000)
try:
    save(100_010)
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "c.pt"], capture_output=True, text=True, check=False
    )
    assert done.returncode != -signal.SIGXFSZ
    assert done.stdout == "File too large: ulimit -f allows 100000 bytes\n", done.stderr
    assert (tmp_path / "c.pt").read_bytes() == bytes(100_000)
    assert names(tmp_path) == ["c.pt"]


def test_savers_to_one_path_leave_one_of_their_files_whole(tmp_path):
    path = tmp_path / "c.pt"
    contents = [bytes([i]) * 200_000 for i in range(8)]
    save(path, contents[0])
    failed: list[BaseException] = []

    def go_on(content: bytes) -> None:
        try:
            for _ in range(10):
                save(path, content)
        except BaseException as error:
            failed.append(error)

    savers = [threading.Thread(target=go_on, args=(content,)) for content in contents]
    for saver in savers:
        saver.start()
    while any(saver.is_alive() for saver in savers):
        assert path.read_bytes() in contents
    assert failed == []
    assert names(tmp_path) == ["c.pt"]
