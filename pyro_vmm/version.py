"""The version, by itself so that every file may import it: that of the installed package, which git's tags give."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pyro_vmm")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"
