"""Private sequences of torch's random numbers, on the CPU and on a device at once."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pyro_vmm.runtime.exclusive import exclusive

CPU = torch.device("cpu")


class RandomNumbers:
    """A private sequence of random numbers. ``with numbers.drawn():`` draws from it, one thread at a time.

    Draws outside of that context do not change the sequence.

    Arguments:
        seed: the seed of the sequence.
        device: the device whose numbers it holds, in addition to those of the CPU.

    Attributes:
        state: the present state of the sequence, as :func:`rng_state` gives it; None before the first draw.
    """

    def __init__(self, seed: int, device: torch.device = CPU):
        self.seed, self.device = seed, device
        self.state: dict | None = None

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """A context in which torch draws from this sequence; other draws are the same as without it."""
        with exclusive():
            before = rng_state(self.device)
            if self.state is None:
                _seed(self.seed, self.device)
            else:
                set_rng_state(self.state, self.device)
            try:
                yield
            finally:
                self.state = rng_state(self.device)
                set_rng_state(before, self.device)

    def fingerprint(self) -> int | None:
        """A checksum of the present state of the sequence; None before the first draw."""
        if self.state is None:
            return None
        return zlib.crc32(b"".join(self.state[name].numpy().tobytes() for name in sorted(self.state)))


def seeded(seed: int, device: torch.device = CPU):
    """A context in which torch draws from a sequence that starts at this seed, for one thread at a time."""
    return RandomNumbers(seed, device).drawn()


def _seed(seed: int, device: torch.device) -> None:
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds every GPU too
    else:
        torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict:
    """The state of torch's random numbers, on the CPU and on that device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict, device: torch.device) -> None:
    """Continue from :func:`rng_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
