"""System calls in a row, with no instruction of the interpreter between them.

Some things cannot be done from Python, because Python changes the memory that they are about: an
interpreter that replaces its own memory by a copy would lose what it did between copying and
replacing; one that forks again and again must copy each page that its loop writes to. A chain is a
table of system calls, each with the row to go on with if its result is above, at or below zero. It
is carried out by the handful of instructions in `_RUNNER`, which touch the table, one page of the
stack, and nothing else.

There is a runner for x86-64 only. Who uses a chain has to do without it elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import struct

from rewardsvc.verifiers.sandbox import linux
from rewardsvc.verifiers.sandbox.syscalls import syscall_numbers

_LOOP = bytes.fromhex(
    "48 89 5d 00"  # mov   [rbp], rbx            the row at hand
    "48 8b 03"  # mov   rax, [rbx]
    "48 8b 7b 08"  # mov   rdi, [rbx+8]
    "48 8b 73 10"  # mov   rsi, [rbx+16]
    "48 8b 53 18"  # mov   rdx, [rbx+24]
    "4c 8b 53 20"  # mov   r10, [rbx+32]
    "4c 8b 43 28"  # mov   r8,  [rbx+40]
    "4c 8b 4b 30"  # mov   r9,  [rbx+48]
    "0f 05"  # syscall
    "48 8b 53 38"  # mov   rdx, [rbx+56]
    "48 89 02"  # mov   [rdx], rax
    "48 8b 4b 40"  # mov   rcx, [rbx+64]
    "48 85 c0"  # test  rax, rax
    "48 0f 44 4b 48"  # cmovz rcx, [rbx+72]
    "48 0f 48 4b 50"  # cmovs rcx, [rbx+80]
    "48 89 cb"  # mov   rbx, rcx
    "48 85 db"  # test  rbx, rbx
    "75"  # jnz   to the start of the loop
)
_RUNNER = (
    bytes.fromhex(
        "f3 0f 1e fa"  # endbr64
        "53"  # push  rbx
        "55"  # push  rbp
        "48 89 fb"  # mov   rbx, rdi            the first row
        "48 89 f5"  # mov   rbp, rsi            where to note which one is at hand
    )
    + _LOOP
    + (256 - len(_LOOP) - 1).to_bytes(1, "little")
    + bytes.fromhex(
        "5d"  # pop   rbp
        "5b"  # pop   rbx
        "c3"  # ret                             the last result
    )
)
# Number, six arguments, where the result goes, and the rows that follow one above, at, below zero.
_ROW = struct.Struct("=11q")
_NUM_ARGS = 6
_PAGE_BYTES, _WORD_BYTES = 4096, 8

NEXT, STOP = -1, -2
"""What may follow a row beside another row: the one after it, if there is one, or the end."""


class ChainError(Exception):
    """This machine does not run chains."""


class Chain:
    """A table of system calls.

    Attributes:
        start, end: Addresses of all that it consists of.
    """

    def __init__(self, *, max_rows: int, data_bytes: int = 0) -> None:
        """Reserves memory for code, data and rows.

        Args:
            max_rows: Rows that there is room for.
            data_bytes: Room for `place`.

        Raises:
            ChainError: If there is no runner for the processor, or the kernel does not allow it.
            OSError: If there is no memory.
        """
        if os.uname().machine != "x86_64" or struct.calcsize("P") != _WORD_BYTES:
            raise ChainError(f"no runner for {os.uname().machine}")
        data_bytes += 2 * _WORD_BYTES + -data_bytes % _WORD_BYTES
        size = _PAGE_BYTES + data_bytes + max_rows * _ROW.size
        size += -size % _PAGE_BYTES
        self.start = linux.map_memory(size, linux.PROT_READ | linux.PROT_WRITE)
        self.end = self.start + size
        ctypes.memmove(self.start, _RUNNER, len(_RUNNER))
        try:
            linux.make_executable(self.start, _PAGE_BYTES)
        except OSError as error:
            raise ChainError("the kernel runs no code that was written here") from error
        self._at = self.start + _PAGE_BYTES
        self._scratch = self._at + _WORD_BYTES
        self._free = self._scratch + _WORD_BYTES
        self._rows_at = self._at + data_bytes
        self._run = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)(self.start)
        self._rows: list[tuple[str, tuple[int, ...], int, tuple[int, int, int]]] = []

    def place(self, content: bytes) -> int:
        """Address of a copy of `content` that calls may read and write."""
        address = self._free
        self._free += len(content) + -len(content) % _WORD_BYTES
        if self._free > self._rows_at:
            raise ValueError(f"data_bytes leaves no room for {len(content)} bytes")
        ctypes.memmove(address, content, len(content))
        return address

    def add(
        self,
        name: str,
        *args: int,
        into: int = 0,
        above: int = NEXT,
        zero: int = NEXT,
        below: int = STOP,
    ) -> int:
        """Adds a row; its number.

        Args:
            name: Of the system call.
            *args: Its arguments; addresses must be of memory that outlives the chain.
            into: Address that the result is written to, as eight bytes; 0 for nowhere.
            above, zero, below: Rows that follow a result above, at or below 0, by number; or `NEXT`
                or `STOP`.
        """
        if self._address(self.num_rows) + _ROW.size > self.end:
            raise ValueError("max_rows leaves no room")
        self._rows.append((name, args, into or self._scratch, (above, zero, below)))
        return self.num_rows - 1

    @property
    def num_rows(self) -> int:
        """How many there are so far; the number of the row that is added next."""
        return len(self._rows)

    def name(self, row: int) -> str:
        """Of a row's system call."""
        return self._rows[row][0]

    def _address(self, row: int) -> int:
        return self._rows_at + row * _ROW.size

    def _packed(self, row: int) -> bytes:
        name, args, into, following = self._rows[row]
        addresses = []
        for one in following:
            one = row + 1 if one == NEXT else one
            stops = one == STOP or one == self.num_rows
            addresses.append(0 if stops else self._address(one))
        filled = (*args, *[0] * (_NUM_ARGS - len(args)))
        return _ROW.pack(syscall_numbers()[name], *filled, into, *addresses)

    def run(self) -> tuple[int, int]:
        """Goes through the rows from the first to one that nothing follows, such as the last.

        Returns:
            That row's number, and the result of its call: below 0, the negative of an error number.
        """
        table = b"".join(map(self._packed, range(self.num_rows)))
        ctypes.memmove(self._rows_at, table, len(table))
        result = int(self._run(self._rows_at, self._at))
        last = ctypes.c_int64.from_address(self._at).value
        return (last - self._rows_at) // _ROW.size, result
