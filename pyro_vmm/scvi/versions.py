"""The versions of scvi-tools that the adapters are tested with."""

from importlib import metadata

#: Tested: each has passed ``tests/test_scvi*.py``.
TESTED = ("1.4.2",)
#: What installs the extra in a checkout. The constraints keep a torchvision of another torch away: it breaks lightning.
INSTALL = 'python -m pip install -c constraints.txt -e ".[scvi]"'


def require_scvi() -> None:
    """Raise ``ImportError`` unless a tested version of scvi-tools is installed."""
    wanted = f"pyro_vmm.scvi needs scvi-tools {' or '.join(TESTED)}: {INSTALL} in a checkout"
    try:
        found = metadata.version("scvi-tools")
    except metadata.PackageNotFoundError:
        raise ImportError(f"{wanted}; it is not installed") from None
    if found not in TESTED:
        raise ImportError(f"{wanted}; {found} is installed")
