"""The parser: every option with its help, in groups. Options of an estimator's settings follow from its fields."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from pyro_vmm.cli.kind import flag
from pyro_vmm.cli.kinds import KINDS
from pyro_vmm.data.delimited import DECIMALS, HEADERS
from pyro_vmm.estimators.presets import PRESETS
from pyro_vmm.evaluation.selection import M_PRIOR, SEEDS
from pyro_vmm.networks import DECODERS, ENCODERS
from pyro_vmm.runtime.settings import AUTO, Setting, group_of, nearest

# The name by which it was started.
PROG = "pyro-vmm" if Path(sys.argv[0]).stem == "pyro-vmm" else "fit.py"
LAUNCHED = "scripts/fit.py" if PROG == "fit.py" else "--no-python pyro-vmm"
DESCRIPTION = "Cluster a data set with a VampPrior Mixture Model, without saying how many clusters there are."
EPILOG = f"""\
Without any option: scikit-learn's bundled handwritten digits, in less than a minute.
Single cells:       {PROG} --dataset cells.h5ad --batch-key batch --label-key cell_type --n-top-genes 2000
Several processes:  torchrun --nproc-per-node=2 {LAUNCHED} --dataset mnist
"""
MORE = f"Every option:       {PROG} --help-all\n"

#: The defaults, in words, of options that are no settings of an estimator.
UNSET = {
    "dataset": "digits",
    "data_dir": "$PYRO_VMM_DATA",
    "header": "auto",
    "separator": ", or a tab in a .tsv",
    "decimal": ".",
    "encoding": "utf-8",
    "network": "mlp",
    "n_top_genes": "all genes",
    "preset": "none",
    "select_seeds": SEEDS,
    "select_jobs": 1,
    "out": "runs/DATASET-PRIOR-TIME",
}


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the epilog, and leaves room for the help beside the options."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)


class Parser(argparse.ArgumentParser):
    """Suggests the nearest known option for an unknown one."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """The given options; ends the program if one is unknown."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            first = next((each for each in unknown if each.startswith("-")), "").split("=")[0]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{nearest(first, self._option_string_actions)}")
        return found


class HelpAll(argparse.Action):
    """Print every option and exit."""

    def __call__(self, parser, namespace, values, option_string=None):
        build_parser(everything=True).print_help()
        parser.exit()


class Group:
    """A group of options. An option that is not given is absent, so that a configuration file can give it."""

    def __init__(self, parser: argparse.ArgumentParser, everything: bool, *title: str):
        self.group, self.everything = parser.add_argument_group(*title), everything

    def add(self, name: str, help: str, common: bool = False, **about) -> None:
        """Add an option; ``--help`` shows the ``common`` ones, ``--help-all`` shows all."""
        text = f"{help}{_default(name)}".replace("%", "%%")
        if about.get("type") is dict:
            about["type"] = json_value
        self.group.add_argument(flag(name), help=text if common or self.everything else argparse.SUPPRESS, **about)


def _default(name: str) -> str:
    """The default in words, and that of cells where it differs."""
    texts = [_in_words(kind.defaults[name], kind.settings[name][1]) for kind in KINDS if name in kind.defaults]
    texts = texts or [str(UNSET.get(name, ""))]
    if not any(texts):
        return ""
    differs = len(texts) > 1 and texts[0] != texts[1]
    return f" (default: {texts[0]}{f'; cells: {texts[1]}' if differs else ''})"


def _in_words(value, setting: Setting) -> str:
    if value is None:
        return setting.unset
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def networks() -> tuple[str, ...]:
    """The names that an encoder and a decoder have."""
    return tuple(name for name in ENCODERS if name in DECODERS)


def build_parser(everything: bool = False) -> argparse.ArgumentParser:
    """The parser for all kinds of data.

    Arguments:
        everything: whether its help shows every option, or only the common ones.
    """
    parser = Parser(
        prog=PROG,
        usage="%(prog)s [--dataset NAME|FILE] [option ...]",
        description=DESCRIPTION,
        epilog=EPILOG if everything else EPILOG + MORE,
        argument_default=argparse.SUPPRESS,
        formatter_class=Formatter,
    )
    parser.add_argument("--help-all", nargs=0, action=HelpAll, help="show every option and exit")
    for add, *title in GROUPS:
        add(Group(parser, everything, *title))
    return parser


def _add_settings(title: str, own: Callable[[Group], None] | None, group: Group) -> None:
    """Add the options of a group: its own ones, and the estimators' settings under this title."""
    if own is not None:
        own(group)
    done = set()
    for kind in KINDS:
        for option, (name, setting) in kind.settings.items():
            if option not in done and group_of(kind.estimator, name).title == title:
                done.add(option)
                group.add(option, setting.help + _names(option), setting.common, **_argument(setting))


def _argument(setting: Setting) -> dict:
    """The arguments of ``add_argument`` for a setting."""
    values, about = setting.values, {}
    if values.type is bool:
        return {"action": argparse.BooleanOptionalAction}
    if values.choices is not None:
        return {"choices": ["none" if each is None else each for each in values.choices]}
    if values.several:
        about["nargs"] = "+"
    return {"type": auto_or(values.type) if values.auto else values.type, "metavar": setting.metavar, **about}


@cache
def auto_or(type_: Callable) -> Callable:
    """A type for the parser: "auto", or a value of the given type, which is its attribute ``other``."""

    def read(text: str) -> Any:
        return text if text == AUTO else type_(text)

    read.__name__, read.other = type_.__name__, type_
    return read


def _names(option: str) -> str:
    """The names that are values of an option for each kind of data, for its help."""
    named = {kind.noun: kind.names_of(option) for kind in KINDS}
    return "".join(f"; {noun}: {', '.join(names)}" for noun, names in named.items() if names)


def _add_data(group: Group) -> None:
    names = "; ".join(f"{kind.noun}: {', '.join(kind.names)}, or a file {', '.join(kind.endings)}" for kind in KINDS)
    group.add("dataset", names, common=True, metavar="NAME|FILE")
    group.add("sample_weight", "how often each row counts, relative to the others; tables and cells", metavar="COLUMN")
    group.add("data_dir", "folder of the named sets' files", metavar="DIR")


def _add_arrays(group: Group) -> None:
    text = "labels, to compare with; not used in training"
    group.add("label_column", text, common=True, metavar="COLUMN")
    group.add("name_column", "column of row names, for assignments.csv; not a feature", metavar="COLUMN")
    group.add("drop_columns", "columns to leave out, such as numbers of rows or dates", nargs="+", metavar="COLUMN")
    group.add("header", "whether a csv's first line names its columns; auto: unless it is numbers", choices=HEADERS)
    group.add("separator", "separator of the fields of a csv, such as ';'", metavar="CHARACTER")
    group.add("decimal", "decimal separator of a csv: . or ,", choices=DECIMALS, metavar="CHARACTER")
    group.add("encoding", "encoding of a csv, such as latin-1", metavar="NAME")
    group.add(
        "network",
        "mlp, or a small convolutional net for images",
        choices=networks(),
    )


def _add_cells(group: Group) -> None:
    text = "cell types, to compare; not used in training"
    group.add("label_key", text, common=True, metavar="COLUMN")
    text = "use so many highly variable genes (seurat_v3, by batch)"
    group.add("n_top_genes", text, common=True, type=int, metavar="G")
    group.add("modality", "which modality of an .h5mu file to read", metavar="NAME")
    group.add("make_unique", "append -1, -2, ... to repeated gene names", action="store_true")
    group.add("backed", "leave X in the file, for more cells than memory holds", action="store_true")


def _add_selection(group: Group) -> None:
    text = f"choose the best M; {' '.join(map(str, M_PRIOR))} if none named"
    group.add("select", text, common=True, type=float, nargs="*", metavar="M")
    group.add("select_learning_rates", "choose among these too", type=float, nargs="+", metavar="R")
    group.add("select_seeds", "number of fits of each kind for each candidate", type=int, metavar="N")
    group.add("select_jobs", "number of parallel fits; -1 for one on each core", type=int, metavar="N")


def _add_run(group: Group) -> None:
    group.add("preset", "paper: the paper's settings in place of the defaults", choices=PRESETS)
    group.add("out", "the run folder, new or empty", common=True, type=Path, metavar="DIR")
    text = "continue this run, interrupted or finished"
    group.add("resume", text, common=True, type=Path, metavar="DIR")
    text = "TOML or JSON of options; the command line wins"
    group.add("config", text, common=True, type=Path, metavar="FILE")
    group.add("no_report", "write no report.html", action="store_true")
    group.add("quiet", "no progress bar", common=True, action="store_true")


def json_value(text: str) -> dict:
    """The value of JSON text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not JSON: {error}") from error


def _group(title: str, own: Callable[[Group], None] | None = None, note: str = "") -> tuple:
    return partial(_add_settings, title, own), f"{title} ({note})" if note else title


#: The function that adds the options of each group, and its heading.
GROUPS = (
    _group("data", _add_data),
    _group("data of arrays and images", _add_arrays),
    _group("data of single cells", _add_cells, "columns of adata.obs"),
    _group("model"),
    _group("model of single cells"),
    _group("granularity and the prior's inference", _add_selection),
    _group("training"),
    _group("run", _add_run),
)
