"""Machines: this one, measured by a probe of a few seconds, and ones that are not here."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from monosemy.device import describe, has_fast_bf16
from monosemy.errors import UserError, nearest

GB = 1e9


@dataclass(frozen=True, slots=True)
class Machine:
    """What work can be asked of it.

    `flops` are of large bf16 products as they are reached, not as a data sheet has them; memory
    and bandwidth are of all its devices together.
    """

    name: str
    count: int
    flops: float
    """Products a second, two operations each counted, of all devices."""
    bandwidth: float
    """Bytes a second from and to device memory, of all devices."""
    device_memory: float
    host_memory: float | None
    """None: not known."""
    disk: float | None


# Dense bf16 peak (fp16 where there is no bf16), memory, memory bandwidth: the makers' data sheets.
_DEVICES = {
    "b200": (2250e12, 180 * GB, 8.0e12),
    "h200": (989e12, 141 * GB, 4.8e12),
    "h100": (989e12, 80 * GB, 3.35e12),
    "a100": (312e12, 80 * GB, 2.0e12),
    "a100-40": (312e12, 40 * GB, 1.55e12),
    "l40s": (362e12, 48 * GB, 0.86e12),
    "a10": (125e12, 24 * GB, 0.6e12),
    "l4": (121e12, 24 * GB, 0.3e12),
    "v100": (125e12, 32 * GB, 0.9e12),
    "t4": (65e12, 16 * GB, 0.32e12),
    "rtx4090": (165e12, 24 * GB, 1.0e12),
    "rtx3090": (71e12, 24 * GB, 0.94e12),
}
_REACHED = 0.4
"""Share of a data sheet's peak that large products reach in practice."""


def machine_named(name: str) -> Machine:
    """Return a machine by its devices' name and number: `h100`, `h100x8`.

    Raises:
        UserError: an unknown device; lists those known.
    """
    found = re.fullmatch(r"(.+?)(?:x(\d+))?", name.lower())
    kind, count = (found[1], int(found[2] or 1)) if found else (name, 0)
    if kind not in _DEVICES or count < 1:
        known = ", ".join(_DEVICES)
        raise UserError(
            f"no hardware `{name}`",
            f"{nearest(kind, list(_DEVICES))} allowed: {known}, each with x2, x8 and so on, "
            "or leave it out for this machine".strip(),
        )
    flops, memory, bandwidth = _DEVICES[kind]
    return Machine(
        name=name.lower(),
        count=count,
        flops=count * flops * _REACHED,
        bandwidth=count * bandwidth * _REACHED,
        device_memory=count * memory,
        host_memory=None,
        disk=None,
    )


def this_machine(device: torch.device, folder: Path) -> Machine:
    """Measure a device by a few products and copies; `folder` says whose disk is meant."""
    free = float(psutil.virtual_memory().available)
    cuda = device.type == "cuda"
    return Machine(
        name=describe(device),
        count=1,
        flops=_flops(device),
        bandwidth=_bandwidth(device),
        device_memory=float(torch.cuda.mem_get_info(device)[0]) if cuda else free,
        host_memory=free,
        disk=float(shutil.disk_usage(_existing(folder)).free),
    )


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return folder if folder.exists() else _existing(folder.parent)


def _flops(device: torch.device, size: int = 2048) -> float:
    dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _seconds(lambda: torch.mm(a, b, out=out), device)


def _bandwidth(device: torch.device, numbers: int = 2**24) -> float:
    a, b = torch.ones(numbers, device=device), torch.empty(numbers, device=device)
    return 8 * numbers / _seconds(lambda: b.copy_(a), device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    work()
    best = float("inf")
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best
