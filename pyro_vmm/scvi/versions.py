"""The versions of scvi-tools that the adapters are tested with."""

from importlib import metadata

#: Tested: each has passed ``tests/test_scvi*.py``.
TESTED = ("1.4.2",)


def require_scvi() -> None:
    """Raise ``ImportError`` unless a tested version of scvi-tools is installed."""
    wanted = f"pyro_vmm.scvi needs scvi-tools {' or '.join(TESTED)}: pip install 'pyro_vmm[scvi]'"
    try:
        found = metadata.version("scvi-tools")
    except metadata.PackageNotFoundError:
        raise ImportError(f"{wanted}; it is not installed") from None
    if found not in TESTED:
        raise ImportError(f"{wanted}; {found} is installed")
