"""Optional packages: if one is missing, the error names the extra that installs it."""

import importlib
from types import ModuleType


def require(module: str, purpose: str, extra: str) -> ModuleType:
    """Import and return an optional module.

    Arguments:
        module: its name, such as "matplotlib".
        purpose: the subject of the message, such as "Drawing figures".
        extra: the extra of this package that installs it, such as "plots".

    Raises:
        ImportError: the module is missing or does not import; the message is one line that says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        reason = "" if missing else f" ({error})"
        raise ImportError(f'{purpose} requires {package}: pip install "pyro_vmm[{extra}]"{reason}') from error
