"""A working folder is used again only where no later run can tell that it was used before."""

from __future__ import annotations

import ast
import os
import struct
from collections.abc import Iterator

import pytest

from rewardsvc.verifiers.sandbox import Limits, Sandbox
from rewardsvc.verifiers.sandbox.rooms import Room, Rooms

LIMITS = Limits(cpu_ms=2000, num_files=8)

LOOK = """
import os
found = os.stat(".")
space = os.statvfs(".")
open("first", "w").close()
print({
    "listing": os.listdir(".") == ["first"],
    "mode": found.st_mode & 0o777,
    "links": found.st_nlink,
    "untouched": found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns,
    "files_left": space.f_ffree,
    "space_left": space.f_bfree == space.f_blocks,
    "first_inode": os.stat("first").st_ino,
})
"""

TOUCHES = {
    "file": "open('x', 'w').write('1')",
    "file that is gone": "open('x', 'w').close(); os.unlink('x')",
    "folder": "os.mkdir('x')",
    "folder that is gone": "os.mkdir('x'); os.rmdir('x')",
    "symbolic link": "os.symlink('/', 'x')",
    "file by another descriptor": "os.open('x', os.O_CREAT, dir_fd=os.open('.', os.O_PATH))",
    "file that is renamed": "open('x', 'w').close(); os.rename('x', 'y'); os.unlink('y')",
    "open file that is gone": "f = open('x', 'w'); os.unlink('x'); f.write('1')",
    "file beside the working folder's name": "os.chdir('/'); open('/sandbox/home/x', 'w')",
    "mode": "os.chmod('.', 0o500)",
    "mode by descriptor": "os.fchmod(os.open('.', os.O_RDONLY), 0o500)",
    "times": "os.utime('.', (1, 1))",
    "temporary file": "import tempfile; tempfile.TemporaryFile().write(b'1')",
    "many files": "for i in range(20):\n    try: open(str(i), 'w')\n    except OSError: pass",
    "many changes": "for i in range(40_000):\n    os.mkdir('x'); os.rmdir('x')",
    "file, then killed": "open('x', 'w').close(); os.kill(os.getpid(), 9)\nimport ctypes\n"
    "ctypes.string_at(0)",
    "file, then out of time": "open('x', 'w').close()\nwhile True: pass",
    "threads at the end": "import threading\n"
    "def make(i):\n    while True: os.mkdir(f'{i}'); os.rmdir(f'{i}')\n"
    "for i in range(4): threading.Thread(target=make, args=(i,), daemon=True).start()\n"
    "import time; time.sleep(0.02); os._exit(0)",
}

LEAVE_ALONE = {
    "nothing": "pass",
    "look": "os.listdir('.'); os.stat('.'); os.scandir('.').close()",
    "listing by descriptor": "os.listdir(os.open('.', os.O_RDONLY))",
    "failures": "for f in (lambda: open('x'), lambda: os.rmdir('x'), lambda: os.unlink('x')):\n"
    "    try: f()\n    except OSError: pass",
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_slots=1, limits=LIMITS) as made:
        yield made


@pytest.fixture(scope="module")
def as_new(sandbox: Sandbox) -> dict[str, object]:
    found = look(sandbox)
    assert found == {
        "listing": True,
        "mode": 0o700,
        "links": 2,
        "untouched": True,
        "files_left": LIMITS.num_files,
        "space_left": True,
        "first_inode": found["first_inode"],
    }
    return found


def look(sandbox: Sandbox) -> dict[str, object]:
    result = sandbox.run("python", LOOK)
    assert result.ok, result
    found = ast.literal_eval(result.stdout.decode())
    assert isinstance(found, dict)
    return found


def folder(sandbox: Sandbox) -> str:
    """Tells working folders apart, and leaves them alone."""
    code = "import os; s = os.stat('.'); print(s.st_ctime_ns, s.st_dev)"
    return sandbox.run("python", code).stdout.decode()


@pytest.mark.parametrize("name", [*TOUCHES, *LEAVE_ALONE])
def test_no_later_run_can_tell(sandbox: Sandbox, as_new: dict[str, object], name: str) -> None:
    code = "import os\n" + (TOUCHES | LEAVE_ALONE)[name]
    for _ in range(2):
        sandbox.run("python", code, limits=Limits(cpu_ms=600, num_files=8))
    for _ in range(5):  # as many as there can be rooms
        assert look(sandbox) == as_new


@pytest.mark.parametrize("name", TOUCHES)
def test_folder_that_was_touched_is_not_used_again(sandbox: Sandbox, name: str) -> None:
    say = "import os\ns = os.stat('.'); print(s.st_ctime_ns, s.st_dev, flush=True)\n"
    result = sandbox.run("python", say + TOUCHES[name], limits=Limits(cpu_ms=600, num_files=8))
    assert result.stdout
    assert result.stdout.decode() not in {folder(sandbox) for _ in range(5)}


@pytest.mark.parametrize("name", LEAVE_ALONE)
def test_folder_that_was_left_alone_is_used_again(sandbox: Sandbox, name: str) -> None:
    code = "import os\n" + LEAVE_ALONE[name]
    folders = set()
    for _ in range(6):
        folders.add(folder(sandbox))
        sandbox.run("python", code)
    assert len(folders) <= 3


def test_files_without_a_name_cannot_be_made(sandbox: Sandbox) -> None:
    code = """
import os
try:
    os.open(".", os.O_TMPFILE | os.O_RDWR)
except PermissionError:
    print("refused")
"""
    assert sandbox.run("python", code).stdout == b"refused\n"


def test_files_that_came_with_an_order_make_it_used(sandbox: Sandbox) -> None:
    say = "import os; s = os.stat('.'); print(s.st_dev, os.listdir('.'))"
    assert b"['given']" in sandbox.run("python", say, files={"given": b"1"}).stdout
    for _ in range(5):
        assert b"[]" in sandbox.run("python", say).stdout


def events(*rows: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("=iIII", watch, mask, 0, 16) + bytes(16) for watch, mask in rows)


@pytest.fixture
def reports() -> Iterator[tuple[Rooms, int]]:
    rooms = Rooms.__new__(Rooms)
    rooms._reports_fd, told = os.pipe()
    os.set_blocking(rooms._reports_fd, False)
    rooms._watches, rooms._changed, rooms._clean = {1, 2, 3}, set(), []
    yield rooms, told
    os.close(told)
    os.close(rooms._reports_fd)


def test_report_of_another_room_is_not_lost(reports: tuple[Rooms, int]) -> None:
    rooms, told = reports
    kept = [Room((1, 1, False), -1, -1, watch) for watch in (1, 2)]
    os.write(told, events((2, 0x100)))
    rooms.give_back(kept[0])
    assert rooms._clean == kept[:1]
    assert rooms._changed == {2}


def test_too_many_reports_mean_that_every_room_has_changed(reports: tuple[Rooms, int]) -> None:
    rooms, told = reports
    os.write(told, events((1, 0x100), (-1, 0x4000)))
    rooms._read_reports()
    assert rooms._changed == {1, 2, 3}


def test_reports_of_rooms_that_are_gone_are_forgotten(reports: tuple[Rooms, int]) -> None:
    rooms, told = reports
    os.write(told, events((9, 0x8000), (9, 0x2000)))
    rooms._read_reports()
    assert rooms._changed == set()
