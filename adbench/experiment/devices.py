"""Which devices this machine has, and what a user may call them."""

from __future__ import annotations

from typing import Any

from adbench.errors import UserError


def names() -> list[str]:
    """The devices of this machine, as `--device` takes them."""
    import torch

    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def device(name: str) -> Any:
    """The torch device of a name; `gpu` is the first that is not the CPU, `cuda` the first of its kind.

    Raises:
        UserError: this machine has no such device; the message lists those that there are.
    """
    import torch

    there = names()
    others = there[1:]
    found = others[0] if name == "gpu" and others else "cuda:0" if name == "cuda" else name
    if found in there:
        return torch.device(found)
    raise UserError(
        f"device {name} cannot be used: this machine has {', '.join(there)}"
        + ("" if others else " and no other device")
    )


def trainer_options(name: str) -> dict[str, Any]:
    """What Lightning's trainer calls a device."""
    found = device(name)
    if found.type == "cuda":
        return {"accelerator": "cuda", "devices": [found.index]}
    return {"accelerator": found.type, "devices": 1}
