"""Data sets and files as plain arrays."""

from pyro_vmm.data.images import (
    Dataset,
    load,
    load_digits,
    load_fashion_mnist,
    load_file,
    load_mnist,
)

__all__ = ["Dataset", "load", "load_digits", "load_fashion_mnist", "load_file", "load_mnist"]
