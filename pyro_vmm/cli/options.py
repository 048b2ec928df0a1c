"""Resolve options by precedence, and find the kind of data that they are for."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from pyro_vmm.cli.kind import SELECTION, Kind, flag
from pyro_vmm.cli.kinds import CELLS, KINDS
from pyro_vmm.cli.parser import networks
from pyro_vmm.cli.values import check_types
from pyro_vmm.data.cell_sets.files import find, folders
from pyro_vmm.data.reading import reason
from pyro_vmm.data.root import data_root
from pyro_vmm.data.user_files import ending_of
from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.runtime.checks import check_choice
from pyro_vmm.runtime.settings import nearest

# A key such as a.b.c, which means nested tables. The time to read it grows with the square of its length.
DEEP_KEY = re.compile(r"""(?:[\w"'-]{1,50}\s{0,9}\.\s{0,9}){100}""")


def resolve(given: dict) -> dict:
    """Options by precedence: the command line, the configuration file, the data set's preset."""
    from_file = read_config(given["config"]) if "config" in given else {}
    config = {"dataset": "digits", "seed": 0, **from_file, **{k: v for k, v in given.items() if k != "config"}}
    return {**kind_of(config).preset(config), **config}


def kind_of(config: dict) -> Kind:
    """The kind of a data set, from its name or its file's ending."""
    name = str(config["dataset"])
    if not name:
        raise ValueError("--dataset is empty, expected the name of a data set or a file")
    for kind in KINDS:
        if name in kind.names or ending_of(name, kind.endings) is not None:
            return kind
    root = data_root(config.get("data_dir"))
    if find(root, f"{name}.h5ad") or Path(name).expanduser().is_dir():
        return CELLS
    named = "; ".join(f"{', '.join(kind.names)} ({kind.noun})" for kind in KINDS)
    stored = sorted({file.stem for folder in folders(root) for file in folder.glob("*.h5ad")} - set(CELLS.names))
    in_folder = f", one of the .h5ad files of {root} ({', '.join(stored)})" if stored else ""
    raise ValueError(
        f"{name!r} is neither a data set nor a file that can be read; expected one of {named}{in_folder}, "
        f"or a file ending in {', '.join(ending for kind in KINDS for ending in kind.endings)}, or a folder with "
        "matrix.mtx"
    )


def in_options(text: str) -> str:
    """A message with the options of the command line in the place of parameters that have other names there."""
    for kind in KINDS:
        for option, (name, setting) in kind.settings.items():
            named = re.search(rf"\b{name}=", text)
            if named and setting.values.never:
                text = text.replace(", or None", ", or 0 for never")
            if named and option != name:
                text = re.sub(rf"\b{name}=", f"{flag(option)} ", text)
    return text


def check(config: dict, kind: Kind) -> None:
    """Raise ``ValueError`` if an option does not apply to this kind of data, or its value has the wrong type."""
    wrong = sorted(config.keys() - kind.options)
    if wrong:
        others = frozenset().union(*(other.options for other in KINDS if other is not kind))
        raise ValueError(
            f"{_flags(wrong)} {'is' if len(wrong) == 1 else 'are'} not for {kind.noun}, which {config['dataset']} "
            f"holds; options for {kind.noun} alone are {_flags(kind.options - others)}"
        )
    check_types(config)
    if (seed := config.get("seed")) is not None and not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} should be a whole number from 0 to 2**32 - 1")
    if "network" in config:
        check_choice("network", config["network"], networks())
    if "select" not in config and (lonely := [name for name in SELECTION if name in config]):
        raise ValueError(f"{_flags(lonely)} {'needs' if len(lonely) == 1 else 'need'} --select")
    if "select" in config and "m_prior" in config:
        raise ValueError("--select chooses m_prior: give its values after --select, and leave out --m-prior")
    if "select" in config and "sample_weight" in config:
        raise ValueError("--select counts all rows alike: leave it out, or --sample-weight")
    likelihood = config.get("likelihood", kind.defaults["likelihood"])
    if likelihood not in kind.likelihoods:
        raise ValueError(
            f"--likelihood {likelihood} is not for {kind.noun}, which {config['dataset']} holds; "
            f"expected one of {', '.join(kind.likelihoods)}"
        )


def _flags(options: Iterable[str]) -> str:
    return ", ".join(map(flag, sorted(options)))


def estimator(config: dict, progress: bool) -> VMM | SingleCellVMM:
    """The estimator that resolved options describe."""
    kind = kind_of(config)
    return kind.estimator(**kind.parameters(config), progress=progress)


def read_config(path: Path) -> dict:
    """Options from a TOML or JSON file, by their long names with underscores."""
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"--config: there is no file {path}")
    loads = json.loads if path.suffix.lower() == ".json" else _load_toml
    try:
        config = loads(path.read_text(encoding="utf-8-sig"))
    except Exception as error:  # the readers raise many types
        raise ValueError(f"--config: {path} is neither TOML nor JSON as its ending says: {reason(error)}") from error
    if not isinstance(config, dict) or not config:
        raise ValueError(f"--config: {path} should hold names and values of options; it holds none")
    known = frozenset().union(*(kind.options for kind in KINDS))
    unknown = sorted(config.keys() - known)
    if unknown:
        problem = f"{path} has unknown options {unknown}{nearest(str(unknown[0]), known)}"
        raise ValueError(f"--config: {problem}; expected some of {sorted(known)}")
    return config


def _load_toml(text: str) -> dict:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    if DEEP_KEY.search(text):
        raise ValueError("it nests names more than a hundred deep")
    return tomllib.loads(text)
