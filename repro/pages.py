"""Shared by pages of results: Markdown tables, and the description of the machine."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path


def line(cells: Sequence) -> str:
    """A row of a table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def header(columns: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(columns), "|---" * len(columns) + "|"]


def machine(threads: int | None = None) -> str:
    """The machine, the versions and the threads that made the numbers; by default torch's own number of threads."""
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    threads = threads or torch.get_num_threads()
    used = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, torch {torch.__version__}, {used}"


def write(path: Path, title: str, about: str, lines: Sequence[str]) -> None:
    """Write a page: a heading, a paragraph, and the lines of its tables."""
    from pyro_vmm.runtime import files

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, "\n".join([f"# {title}", "", about, "", *lines]) + "\n")
