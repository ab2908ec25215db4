"""The device, its threads and seed, chosen once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from monosemy.errors import UserError

# The Intel library behind CPU products schedules its threads dynamically unless told otherwise,
# and then sums differ now and then by the last bit. It reads this at its first product.
os.environ.setdefault("MKL_CBWR", "AUTO")


def fix_threads() -> None:
    """Keep the number of threads as it is: how work is divided decides how sums are rounded."""
    torch.set_num_threads(torch.get_num_threads())


def choose_device(name: str | None = None) -> torch.device:
    """Return the named device, or the best there is: CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: the named device does not exist here.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device `{name}` cannot be used: {str(error).splitlines()[0]}",
            "allowed here: `cpu`" + (", `cuda`" if torch.cuda.is_available() else ""),
        ) from error
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Say whether bf16 matrix products are faster than fp32 ones on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in names)
    return False


def describe(device: torch.device) -> str:
    """Say in one line what the work runs on and why."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (CUDA)"
    if device.type == "mps":
        return "Apple GPU (MPS)"
    kind = "bf16 matrix units" if has_fast_bf16(device) else "no bf16 matrix units"
    return f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores, {kind}, no GPU found"


@contextmanager
def fork_seed(seed: int) -> Iterator[None]:
    """Run a block under its own torch seed and leave the CPU generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
