"""Atomic writes on full disks, with several processes and after kills; irregular files are refused."""

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
from disks import file_size_limit

import attzoo
from attzoo import files
from attzoo.cli.files import convert
from attzoo.train import state


@pytest.fixture
def saved(tmp_path):
    """Return the path of a saved block, in a folder of its own."""
    (tmp_path / "in").mkdir()
    attzoo.save(attzoo.create("cbam", 64, norm=True, backend="torch"), path := tmp_path / "in" / "block.safetensors")
    return path


# ---- files that are not regular --------------------------------------------------------------------


def pipe(path):
    """Create a named pipe."""
    os.mkfifo(path)


def link_to_pipe(path):
    """Create a symbolic link to a named pipe."""
    pipe_path = path.parent.with_name(f"pipe of {path.name}")
    os.mkfifo(pipe_path)
    path.symlink_to(pipe_path)


def unix_socket(path):
    """Create a Unix socket."""
    working_directory = Path.cwd()
    os.chdir(path.parent)   # the length of socket paths is limited
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(working_directory)


IRREGULAR = {
    "pipe": (pipe, "a pipe"),
    "link to a pipe": (link_to_pipe, "a pipe"),
    "zeros": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "random": (lambda path: path.symlink_to("/dev/random"), "a device"),
    "terminal": (lambda path: path.symlink_to("/dev/tty"), "a device"),
    "socket": (unix_socket, "a socket"),
}


@pytest.mark.timeout(60)   # opening some of these would block
@pytest.mark.parametrize("name_of_kind", IRREGULAR)
def test_irregular_files_are_refused_without_blocking(name_of_kind, tmp_path):
    create_file, kind = IRREGULAR[name_of_kind]
    for name, read in {
        "block.safetensors": lambda path: attzoo.load(path, backend="torch"),
        "other.safetensors": lambda path: convert(path, tmp_path / "out.pt"),
        state.NAME: lambda path: state.load(path.parent),
        state.SETTINGS: lambda path: state.load_settings(path.parent),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        create_file(folder / name)
        with pytest.raises(OSError, match=rf"expected a regular file at {folder / name}, got {kind}$"):
            read(folder / name)
    assert not (tmp_path / "out.pt").exists()


def test_link_to_a_file_is_read(saved):
    (link := saved.with_name("link.safetensors")).symlink_to(saved.name)
    assert attzoo.load(link, backend="torch").spec == attzoo.load(saved, backend="torch").spec


def test_open_regular_refuses_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        files.open_regular(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        files.open_regular(tmp_path)


# ---- a full disk -----------------------------------------------------------------------------------


# an incomplete file of attzoo.save: save and convert replace no other safetensors
OLD = b"\xff" + bytes(7) + rb'{"__metadata__":{"attzoo":"{\"format\": 1, \"block\":' + b"the old file"


@pytest.mark.parametrize("old_content", [OLD, None])
@pytest.mark.parametrize("ending", [".pt", ".pth", ".weights.h5", ".keras", ".safetensors"])
def test_full_disk_error_names_the_file_and_keeps_the_old_file(ending, old_content, saved, tmp_path, monkeypatch):
    (out := tmp_path / "out").mkdir()
    target = out / f"block{ending}"
    if old_content:
        target.write_bytes(old_content)
    original = Path.write_bytes

    def write_bytes(path, data):
        assert path.parent == out, "written to another folder"
        assert sorted(path.name for path in out.iterdir()) == sorted([path.name] + [target.name] * bool(old_content))
        with file_size_limit(300):
            return original(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match=rf"File too large: '{target}'$") as error:   # the system's message for this limit
        convert(saved, target)
    assert error.value.errno == errno.EFBIG
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == (
        [(target.name, old_content)] if old_content else []
    )
    monkeypatch.undo()
    convert(saved, target)
    assert [path.name for path in out.iterdir()] == [target.name]


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
def test_error_of_writing_to_memory_names_the_file(ending, saved, tmp_path):
    """Keras writes to a file in memory first, to which a limit of the process applies too."""
    (out := tmp_path / "out").mkdir()
    target = out / f"block{ending}"
    with file_size_limit(300), pytest.raises(OSError, match=rf"File too large: '{target}'$"):
        convert(saved, target)
    assert not list(out.iterdir())


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_errors_of_every_step_name_the_file(number, step, saved, monkeypatch):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match=rf"\[Errno {number}\] {os.strerror(number)}: '{saved}'"):
        attzoo.save(attzoo.create("eca", 8, backend="torch"), saved)


def test_read_only_folder_is_named_with_the_file_or_alone(tmp_path, monkeypatch):
    def refuse(path, *args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match=rf"Read-only file system: '{tmp_path / 'a.pt'}'$"):
        files.write(tmp_path / "a.pt", b"content")
    monkeypatch.setattr(files, "_open_no_follow", refuse)
    with pytest.raises(OSError, match=rf"Read-only file system: '{tmp_path}'$"), files.locked(tmp_path):
        pass


@pytest.mark.parametrize("name", ["link", "link/out"])
def test_a_link_to_a_missing_folder_is_no_output_folder(name, tmp_path):
    """Creating the folder would raise FileExistsError."""
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    with pytest.raises(NotADirectoryError, match=rf"^out must be a folder, got a link to {tmp_path / 'missing'}, "):
        files.usable_folder(tmp_path / name)
    (tmp_path / "missing").mkdir()
    assert files.usable_folder(tmp_path / name) == tmp_path / name


def test_error_of_a_write_in_parts_names_the_file(tmp_path):
    target = tmp_path / "volume.nii.gz"

    def write_in_parts():
        with files.atomic_write(target) as temporary, temporary.open("wb") as file:
            file.write(bytes(200))
            file.flush()
            with file_size_limit(300):
                file.write(bytes(200))
                file.flush()

    with pytest.raises(OSError, match=rf"File too large: '{target}'$"):
        write_in_parts()
    assert not list(tmp_path.iterdir())


def test_other_errors_are_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), files.atomic_write(tmp_path / "a"):
        open(tmp_path / "elsewhere")   # noqa: SIM115
    with pytest.raises(io.UnsupportedOperation), files.atomic_write(tmp_path / "a") as path, path.open("rb") as file:
        file.write(b"")
    assert not list(tmp_path.iterdir())


# ---- killed and running processes ------------------------------------------------------------------

WRITE_AND_WAIT = """
import os, signal, sys, time
from pathlib import Path
from attzoo import files

with files.atomic_write(Path(sys.argv[1])) as path:
    path.write_bytes(b"half")
    print(path.name, flush=True)
    sys.stdin.read(1) or os.kill(os.getpid(), signal.SIGKILL)
print("done", flush=True)
"""


def start_process(program, *args):
    """Start a Python program in a new process, and return the process."""
    command = [sys.executable, "-c", program, *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(Path(attzoo.__file__).parents[1])}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def test_next_write_removes_temporary_files_of_killed_processes(tmp_path):
    target, unrelated = tmp_path / "a.safetensors", (
        ".attzoo-notes", ".attzoo-", ".other-0123456789abcdef-a", "attzoo-0123456789abcdef-a", ".attzoo-ab-thesis.txt",
        ".attzoo-0123456789abcde-a", ".attzoo-0123456789abcdef0-a", ".attzoo-0123456789ABCDEF-a",
        ".attzoo-0123456789abcdef-", ".attzoo-0123456789abcdef-" + "a" * 21,
    )   # fmt: skip
    for name in unrelated:
        (tmp_path / name).write_bytes(b"somebody's")
    (tmp_path / ".attzoo-0123456789abcdef-folder").mkdir()
    (tmp_path / ".attzoo-0123456789abcdef-link").symlink_to(unrelated[0])
    not_files = [".attzoo-0123456789abcdef-folder", ".attzoo-0123456789abcdef-link"]
    processes = [start_process(WRITE_AND_WAIT, target) for _ in range(3)]
    stale = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.stdin.close()
        assert process.wait(timeout=60) == -signal.SIGKILL
        process.stdout.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*unrelated, *not_files, *stale])
    files.write(tmp_path / "b.safetensors", b"another file")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*unrelated, *not_files, "b.safetensors"])
    assert all((tmp_path / name).read_bytes() == b"somebody's" for name in unrelated)


def test_temporary_file_of_a_running_process_is_not_removed(tmp_path):
    process = start_process(WRITE_AND_WAIT, tmp_path / "a")
    name = process.stdout.readline().strip()
    for _ in range(5):
        files.write(tmp_path / "b", b"ours")
        files.remove_stale(tmp_path)
    assert (tmp_path / name).read_bytes() == b"half"
    out, _ = process.communicate("x", timeout=60)
    assert (process.returncode, out.strip()) == (0, "done")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"half", "b": b"ours"}


def test_threads_may_write_and_remove_stale_files_concurrently(tmp_path):
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
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        f"{number}-{i}": bytes([number]) * 9 for number in range(8) for i in range(3)
    }


def test_temporary_file_removed_before_its_lock_is_created_again(tmp_path, monkeypatch):
    original, names = files._lock, []

    def lock(file, wait):
        if wait and len(names) < 2:
            names.append(Path(file.name).name)
            Path(file.name).unlink()   # as a faster process would
        return original(file, wait)

    monkeypatch.setattr(files, "_lock", lock)
    files.write(tmp_path / "a", b"whole")
    assert len(set(names)) == 2
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"whole")]


def test_read_only_file_is_not_replaced(tmp_path):
    path = tmp_path / "block.safetensors"
    path.write_bytes(b"final")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match=r"expected a writable file at .*, got a read-only file"):
        files.write(path, b"other")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"final"]


def test_link_to_a_read_only_file_is_replaced_and_its_target_unchanged(tmp_path):
    (target := tmp_path / "final").write_bytes(b"final")
    target.chmod(0o444)
    (link := tmp_path / "link").symlink_to(target)
    files.write(link, b"other")
    assert (link.read_bytes(), target.read_bytes()) == (b"other", b"final")
