"""Torch's random numbers, on the CPU and on a device at once."""

import torch


def fork_rng(device: torch.device):
    """A context that leaves the caller's random numbers, on the CPU and on that device, as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def rng_state(device: torch.device) -> dict:
    """Where torch's random numbers stand, on the CPU and on that device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict, device: torch.device) -> None:
    """Continue from :func:`rng_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
