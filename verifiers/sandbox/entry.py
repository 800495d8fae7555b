"""The slot's namespaces: how a process gets into them, as root and as an ordinary user."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from rewardsvc.verifiers.sandbox import linux, rootfs
from rewardsvc.verifiers.sandbox.layers import Layer

INNER_ID = 1000
"""User and group id that programs see."""

# Users that no file of the host belongs to, one a slot; a container may not map that many ids, so
# the one that is there everywhere comes last.
_FIRST_SLOT_UID = 0x6000_0000
_NUM_SLOT_UIDS = 1 << 16
_NOBODY = 65534


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How far the porter has come.

    Attributes:
        layers: To raise.
        paths: To show of the host.
        root: The tree of the jail, if it had to be built by root.
        child_uid: The host user that children become, or -1 if root has been given up already.
    """

    layers: frozenset[Layer]
    paths: list[str]
    root: str
    child_uid: int


def prepare_entry(layers: frozenset[Layer], paths: list[str], salt: int) -> Entry:
    """Takes the calling process into a user namespace; its next fork begins a pid namespace.

    The pid namespace must belong to the user namespace: else the supervisor could neither nest
    others in it nor mount its /proc. The tree of the jail must be built by root, where there is
    root: some of what it shows may lie in folders that only root can enter.
    """
    host_root = os.geteuid() == 0
    root = ""
    child_uid = -1
    if Layer.MOUNT_NS in layers and host_root:
        _private_mounts()
        root = rootfs.build(paths)
    if Layer.USER_NS in layers:
        if host_root:
            become_slot_user(salt)
        enter_user_namespace()
    elif host_root:
        child_uid = _FIRST_SLOT_UID + salt % _NUM_SLOT_UIDS
    if Layer.PID_NS in layers:
        linux.unshare(linux.CLONE_NEWPID)
    return Entry(layers=layers, paths=paths, root=root, child_uid=child_uid)


def enter_user_namespace() -> None:
    """A user namespace in which this user has a number of its own and every capability."""
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{INNER_ID} {uid} 1"),
        ("gid_map", f"{INNER_ID} {gid} 1"),
    ):
        Path("/proc/self", name).write_text(text)


def become_slot_user(salt: int) -> int:
    """Gives up being root for a user of the slot's own; returns its id.

    The process stays readable to itself in /proc, which it needs to write its id map.
    """
    os.setgroups([])
    for uid in (_FIRST_SLOT_UID + salt % _NUM_SLOT_UIDS, _NOBODY):
        try:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        except OSError:
            continue
        linux.prctl(linux.PR_SET_DUMPABLE, 1)
        return uid
    raise OSError("no user id to become: neither a private one nor nobody exists here")


def enter_namespaces(entry: Entry) -> None:
    """Takes the calling process, the first of its pid namespace, into the other namespaces."""
    layers = entry.layers
    others = {
        Layer.NET_NS: linux.CLONE_NEWNET,
        Layer.IPC_NS: linux.CLONE_NEWIPC,
        Layer.UTS_NS: linux.CLONE_NEWUTS,
    }
    for layer, flag in others.items():
        if layer in layers:
            linux.unshare(flag)
    if Layer.UTS_NS in layers:
        socket.sethostname("sandbox")
    if Layer.MOUNT_NS in layers:
        _private_mounts()
        root = entry.root or rootfs.build(entry.paths)
        rootfs.enter(root, with_proc=Layer.PROC in layers)


def _private_mounts() -> None:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
