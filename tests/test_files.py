"""Files that appear whole or not at all: on full disks, beside other processes, after kills; and what is no file."""

import errno
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from disks import full

import attzoo
from attzoo import files
from attzoo.cli.files import convert
from attzoo.train import state


@pytest.fixture
def saved(tmp_path):
    (tmp_path / "in").mkdir()
    attzoo.save(attzoo.create("cbam", 64, norm=True, backend="torch"), path := tmp_path / "in" / "block.safetensors")
    return path


# ---- what is no regular file -----------------------------------------------------------------------


def pipe(path):
    os.mkfifo(path)


def link_to_pipe(path):
    elsewhere = path.parent.with_name(f"pipe of {path.name}")
    os.mkfifo(elsewhere)
    path.symlink_to(elsewhere)


def unix_socket(path):
    here = Path.cwd()
    os.chdir(path.parent)   # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


IRREGULAR = {
    "pipe": (pipe, "a pipe"),
    "link to a pipe": (link_to_pipe, "a pipe"),
    "zeros": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "random": (lambda path: path.symlink_to("/dev/random"), "a device"),
    "terminal": (lambda path: path.symlink_to("/dev/tty"), "a device"),
    "socket": (unix_socket, "a socket"),
}


@pytest.mark.timeout(60)   # where they are opened, some of these wait for ever
@pytest.mark.parametrize("what", IRREGULAR)
def test_what_is_no_regular_file_is_refused_at_once(what, tmp_path):
    make, kind = IRREGULAR[what]
    for name, read in {
        "block.safetensors": lambda path: attzoo.load(path, backend="torch"),
        "other.safetensors": lambda path: convert(path, tmp_path / "out.pt"),
        state.NAME: lambda path: state.load(path.parent),
        state.SETTINGS: lambda path: state.load_settings(path.parent),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        make(folder / name)
        with pytest.raises(OSError, match=rf"expected a regular file at {folder / name}, got {kind}$"):
            read(folder / name)
    assert not (tmp_path / "out.pt").exists()


def test_a_link_to_a_file_is_read(saved):
    (link := saved.with_name("link.safetensors")).symlink_to(saved.name)
    assert attzoo.load(link, backend="torch").spec == attzoo.load(saved, backend="torch").spec


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        files.open_regular(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        files.open_regular(tmp_path)


# ---- a full disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [b"the old file", None])
@pytest.mark.parametrize("ending", [".pt", ".pth", ".weights.h5", ".keras", ".safetensors"])
def test_a_full_disk_is_named_and_the_old_file_stays(ending, there, saved, tmp_path, monkeypatch):
    (out := tmp_path / "out").mkdir()
    target = out / f"block{ending}"
    if there:
        target.write_bytes(there)
    real = Path.write_bytes

    def write_bytes(path, data):
        assert path.parent == out, "written elsewhere"
        assert sorted(p.name for p in out.iterdir()) == sorted([path.name] + [target.name] * bool(there))
        with full(300):
            return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match=rf"File too large: '{target}'$") as error:   # what the system says of this limit
        convert(saved, target)
    assert error.value.errno == errno.EFBIG
    assert [(p.name, p.read_bytes()) for p in out.iterdir()] == ([(target.name, there)] if there else [])
    monkeypatch.undo()
    convert(saved, target)
    assert [p.name for p in out.iterdir()] == [target.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_errors_of_any_step_name_the_file(number, step, saved, monkeypatch):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match=rf"\[Errno {number}\] {os.strerror(number)}: '{saved}'"):
        attzoo.save(attzoo.create("eca", 8, backend="torch"), saved)


def test_a_writer_that_writes_in_parts_names_the_file(tmp_path):
    target = tmp_path / "volume.nii.gz"

    def part():
        with files.whole(target) as temporary, temporary.open("wb") as file:
            file.write(bytes(200))
            file.flush()
            with full(300):
                file.write(bytes(200))
                file.flush()

    with pytest.raises(OSError, match=rf"File too large: '{target}'$"):
        part()
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), files.whole(tmp_path / "a"):
        open(tmp_path / "elsewhere")   # noqa: SIM115
    with pytest.raises(io.UnsupportedOperation), files.whole(tmp_path / "a") as path, path.open("rb") as file:
        file.write(b"")
    assert not list(tmp_path.iterdir())


# ---- killed processes, and live ones ---------------------------------------------------------------

HALF = """
import os, signal, sys, time
from pathlib import Path
from attzoo import files

with files.whole(Path(sys.argv[1])) as path:
    path.write_bytes(b"half")
    print(path.name, flush=True)
    sys.stdin.read(1) or os.kill(os.getpid(), signal.SIGKILL)
print("done", flush=True)
"""


def started(program, *args):
    command = [sys.executable, "-c", program, *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(Path(attzoo.__file__).parents[1])}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def test_the_next_save_removes_what_kills_have_left(tmp_path):
    target, keep = tmp_path / "a.safetensors", (
        ".attzoo-notes", ".attzoo-", ".other-0123456789abcdef-a", "attzoo-0123456789abcdef-a", ".attzoo-ab-thesis.txt",
        ".attzoo-0123456789abcde-a", ".attzoo-0123456789abcdef0-a", ".attzoo-0123456789ABCDEF-a",
        ".attzoo-0123456789abcdef-", ".attzoo-0123456789abcdef-" + "a" * 21,
    )   # fmt: skip
    for name in keep:
        (tmp_path / name).write_bytes(b"somebody's")
    (tmp_path / ".attzoo-0123456789abcdef-folder").mkdir()
    (tmp_path / ".attzoo-0123456789abcdef-link").symlink_to(keep[0])
    others = [".attzoo-0123456789abcdef-folder", ".attzoo-0123456789abcdef-link"]
    processes = [started(HALF, target) for _ in range(3)]
    left = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.stdin.close()
        assert process.wait(timeout=60) == -signal.SIGKILL
        process.stdout.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*keep, *others, *left])
    files.write(tmp_path / "b.safetensors", b"another file")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*keep, *others, "b.safetensors"])
    assert all((tmp_path / name).read_bytes() == b"somebody's" for name in keep)


def test_the_file_of_a_live_process_stays(tmp_path):
    process = started(HALF, tmp_path / "a")
    name = process.stdout.readline().strip()
    for _ in range(5):
        files.write(tmp_path / "b", b"ours")
        files.remove_stale(tmp_path)
    assert (tmp_path / name).read_bytes() == b"half"
    out, _ = process.communicate("x", timeout=60)
    assert (process.returncode, out.strip()) == (0, "done")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"half", "b": b"ours"}


def test_many_writers_and_removers_at_once(tmp_path):
    failures = []

    def work(number):
        try:
            for i in range(60):
                files.write(tmp_path / f"{number}-{i % 3}", bytes([number]) * 9)
                files.remove_stale(tmp_path)
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        f"{number}-{i}": bytes([number]) * 9 for number in range(8) for i in range(3)
    }


def test_a_file_removed_between_its_making_and_its_lock_is_made_anew(tmp_path, monkeypatch):
    real, names = files._lock, []

    def lock(file, wait):
        if wait and len(names) < 2:
            names.append(Path(file.name).name)
            Path(file.name).unlink()   # as another process does, which was faster
        return real(file, wait)

    monkeypatch.setattr(files, "_lock", lock)
    files.write(tmp_path / "a", b"whole")
    assert len(set(names)) == 2
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"whole")]


def test_a_read_only_file_is_not_replaced(tmp_path):
    path = tmp_path / "block.safetensors"
    path.write_bytes(b"final")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match=r"expected a file that may be written at .*, got a read-only one"):
        files.write(path, b"other")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"final"]


def test_a_link_to_a_read_only_file_is_replaced_alone(tmp_path):
    (target := tmp_path / "final").write_bytes(b"final")
    target.chmod(0o444)
    (link := tmp_path / "link").symlink_to(target)
    files.write(link, b"other")
    assert (link.read_bytes(), target.read_bytes()) == (b"other", b"final")
