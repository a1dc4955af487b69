"""What this machine offers to a client, and what to do about the rest."""

import ctypes
import os
from typing import Any

from ._errors import Error
from ._forebay import VERSION, Client, gpu_ladder, rdma_devices, shm_sockets

_LIBRARIES = {
    "rdma": ("libibverbs.so.1", "librdmacm.so.1"),
    "gpu": ("libcuda.so.1", "libcufile.so.0"),
}


def caps(endpoint: str = "auto") -> dict[str, Any]:
    """What works here, as a dictionary. Each entry has ``ok`` and, where that is false, ``why``."""
    return {
        "version": VERSION,
        "node": _node(endpoint),
        "shared_memory": _shared_memory(endpoint),
        "rdma": _rdma(),
        "gpu": _gpu(),
        "libraries": {name: _library(name) for names in _LIBRARIES.values() for name in names},
        "cpus": len(os.sched_getaffinity(0)),
    }


def _node(endpoint: str) -> dict[str, Any]:
    try:
        with Client(endpoint, timeout=5.0) as client:
            return {"ok": True, "fabric": client.fabric, "ping_us": round(client.ping() * 1e6)}
    except Error as error:
        return {"ok": False, "why": str(error)}


def _shared_memory(endpoint: str) -> dict[str, Any]:
    try:
        os.close(os.memfd_create("forebay-doctor"))
    except OSError as error:
        return {"ok": False, "why": f"memory cannot be shared: {error}"}
    try:
        sockets = [str(socket) for socket in shm_sockets(endpoint)]
    except Error as error:
        return {"ok": False, "why": str(error)}
    if not sockets:
        return {"ok": False, "why": f"{endpoint} is no way through shared memory"}
    found = [socket for socket in sockets if os.path.exists(socket)]
    if not found:
        return {"ok": False, "why": f"no node's socket at {' or '.join(sockets)}"}
    if not os.access(found[0], os.W_OK):
        return {"ok": False, "why": f"this user may not write to {found[0]}"}
    return {"ok": True, "socket": found[0]}


def _rdma() -> dict[str, Any]:
    try:
        ports = [
            {"device": name, "up": up, "addresses": addresses}
            for name, up, addresses in rdma_devices()
        ]
    except Error as error:
        return {"ok": False, "why": str(error)}
    if not ports:
        return {"ok": False, "why": "no RDMA device; nodes elsewhere are reached over TCP"}
    if not any(port["up"] for port in ports):
        return {"ok": False, "why": "every RDMA port is down: see `rdma link`", "ports": ports}
    return {"ok": True, "ports": ports}


def _gpu() -> dict[str, Any]:
    # The way through the host's memory that is not pinned is always there, and no way to wish for.
    ladder = gpu_ladder()
    rungs = {way: {"ok": why is None} | ({"why": why} if why else {}) for way, why in ladder}
    if not rungs["staged"]["ok"]:
        return {"ok": False, "why": rungs["staged"]["why"], "ladder": rungs}
    best = next(way for way, why in ladder if why is None)
    return {"ok": True, "best": best, "ladder": rungs}


def _library(name: str) -> dict[str, Any]:
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return {"ok": False, "why": str(error)}
    return {"ok": True}


def report(endpoint: str = "auto") -> tuple[str, bool]:
    """The same in lines for people, and whether a node was reached."""
    found = caps(endpoint)
    rows = [
        (f"node at {endpoint}", found["node"]),
        ("shared memory", found["shared_memory"]),
        ("RDMA devices", found["rdma"]),
        ("GPU memory", found["gpu"]),
        *((f"  {way}", rung) for way, rung in found["gpu"]["ladder"].items()),
        *((name, entry) for name, entry in found["libraries"].items()),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"forebay {found['version']}, {found['cpus']} processors"]
    for name, entry in rows:
        says = next((entry[key] for key in ("why", "fabric", "socket", "best") if key in entry), "")
        mark = "ok     " if entry["ok"] else "missing"
        lines.append(f"{mark}  {name:<{width}}  {says}".rstrip())
    return "\n".join(lines), bool(found["node"]["ok"])
