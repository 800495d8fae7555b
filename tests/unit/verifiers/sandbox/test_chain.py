"""A chain makes its calls in the order that their results say, and stops where it should."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rewardsvc.verifiers.sandbox.chain import NEXT, STOP, Chain, ChainError

PLACE_BYTES = 64


@pytest.fixture
def chain() -> Chain:
    try:
        return Chain(max_rows=16, data_bytes=4 * PLACE_BYTES)
    except ChainError as error:
        pytest.skip(str(error))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


def test_rows_run_in_turn_and_results_are_kept(chain: Chain, pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    place, pid = chain.place(bytes(PLACE_BYTES)), chain.place(bytes(8))
    text = chain.place(b"through a pipe")
    chain.add("write", write_end, text, 14)
    chain.add("read", read_end, place, PLACE_BYTES)
    last = chain.add("getpid", into=pid)
    assert chain.run() == (last, os.getpid())
    assert ctypes.string_at(place, 14) == b"through a pipe"
    assert word(pid) == os.getpid()
    assert chain.name(last) == "getpid"


def test_all_six_arguments_arrive(chain: Chain) -> None:
    address = chain.place(bytes(8))
    private_anonymous, size = 0x22, 1 << 16
    chain.add("mmap", 0, size, 3, private_anonymous, -1, 0, into=address, below=STOP)
    row, result = chain.run()
    assert row == 0
    assert result == word(address) > 0
    ctypes.memset(result, 7, size)
    assert ctypes.CDLL(None).munmap(ctypes.c_void_p(result), ctypes.c_size_t(size)) == 0


@pytest.mark.parametrize(
    ("name", "args", "follows"),
    [("getpid", (), 1), ("madvise", (0, 0, 0), 2), ("close", (9999,), 3)],
    ids=["above zero", "zero", "below zero"],
)
def test_sign_of_the_result_says_what_follows(
    chain: Chain, name: str, args: tuple[int, ...], follows: int
) -> None:
    chain.add(name, *args, above=1, zero=2, below=3)
    for _ in range(3):
        chain.add("getppid", above=STOP)
    assert chain.run() == (follows, os.getppid())


def test_refused_call_ends_it_with_the_error(chain: Chain) -> None:
    chain.add("close", 9999)
    chain.add("getpid")
    assert chain.run() == (0, -errno.EBADF)


def test_refused_call_may_be_passed_over(chain: Chain) -> None:
    chain.add("close", 9999, below=NEXT)
    chain.add("getpid")
    assert chain.run() == (1, os.getpid())


def test_rows_may_go_back(chain: Chain, pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    os.write(write_end, b"abc")
    os.set_blocking(read_end, False)
    chain.add("read", read_end, chain.place(bytes(8)), 1, above=0)
    chain.add("getpid")
    assert chain.run() == (0, -errno.EAGAIN)


def test_chain_runs_again(chain: Chain) -> None:
    chain.add("getpid")
    assert chain.run() == chain.run() == (0, os.getpid())


def test_too_much_is_refused(chain: Chain) -> None:
    with pytest.raises(ValueError, match="data_bytes"):
        chain.place(bytes(1 << 16))
    with pytest.raises(ValueError, match="max_rows"):
        for _ in range(1 << 12):
            chain.add("getpid")


def test_its_code_cannot_be_written_to(chain: Chain) -> None:
    code = """
import ctypes
from rewardsvc.verifiers.sandbox.chain import Chain
chain = Chain(max_rows=1)
chain.add("getpid")
assert chain.run()[1] > 0
print("writing", flush=True)
ctypes.memset(chain.start, 0, 1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.stdout == b"writing\n"
    assert done.returncode < 0


def test_other_processors_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(os.uname())
    names[4] = "riscv64"
    monkeypatch.setattr("os.uname", lambda: os.uname_result(names))
    with pytest.raises(ChainError, match="riscv64"):
        Chain(max_rows=1)
