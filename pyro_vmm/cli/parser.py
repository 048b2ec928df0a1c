"""The parser: every option with its help, in groups."""

import argparse
import json
from pathlib import Path

from pyro_vmm.cli.kind import flag
from pyro_vmm.cli.kinds import KINDS
from pyro_vmm.data.delimited import DECIMALS, HEADERS
from pyro_vmm.estimators.building import INIT_CENTRES, INITS, SCALINGS
from pyro_vmm.estimators.cells import LIBRARIES
from pyro_vmm.evaluation.selection import M_PRIOR, SEEDS
from pyro_vmm.inference import MONITORS
from pyro_vmm.networks import COVARIANCE_STARTS, COVARIANCES
from pyro_vmm.priors import EXPECTATIONS, PRIORS, RESPONSIBILITIES
from pyro_vmm.priors.hyperpriors import HYPERPRIORS
from pyro_vmm.priors.pseudo_inputs import PSEUDO_BATCHES
from pyro_vmm.runtime.precision import PRECISIONS

PROG = "fit.py"
DESCRIPTION = "Cluster a data set with a VampPrior Mixture Model, without saying how many clusters there are."
EPILOG = """\
Without any option: scikit-learn's bundled handwritten digits, in less than a minute.
Single cells:       fit.py --dataset cells.h5ad --batch-key batch --label-key cell_type --n-top-genes 2000
Several processes:  torchrun --nproc-per-node=2 scripts/fit.py --dataset mnist
"""

#: What an option that is not given comes to where the estimators have no value for it.
UNSET = {
    "dataset": "digits",
    "data_dir": "$PYRO_VMM_DATA",
    "header": "auto",
    "separator": ", or a tab in a .tsv",
    "decimal": ".",
    "encoding": "utf-8",
    "network": "mlp",
    "seed": 0,
    "n_top_genes": "all genes",
    "batch_key": "a single batch",
    "layer": "X",
    "size_factor_key": "the cell's total counts",
    "prior_learning_rate": "that of the networks",
    "select_seeds": SEEDS,
    "out": "runs/DATASET-PRIOR-TIME",
}


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the epilog's lines, and the columns of the options narrow enough to read beside their help."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)


class Group:
    """A group of options; one that is not given leaves no trace, so that a configuration file can give it."""

    def __init__(self, parser: argparse.ArgumentParser, *title: str):
        self.group = parser.add_argument_group(*title)

    def add(self, name: str, help: str, **settings) -> None:
        self.group.add_argument(flag(name), help=f"{help}{_default(name)}".replace("%", "%%"), **settings)


def _default(name: str) -> str:
    """The default in words; that of cells besides, where it differs."""
    values = [UNSET[name]] if name in UNSET and not any(name in kind.defaults for kind in KINDS) else []
    values += [kind.defaults[name] for kind in KINDS if name in kind.defaults]
    texts = [_in_words(name, value) for value in values]
    if not any(texts):
        return ""
    differs = len(texts) > 1 and texts[0] != texts[1]
    return f" (default: {texts[0]}{f'; cells: {texts[1]}' if differs else ''})"


def _in_words(name: str, value) -> str:
    if value is None:
        return str(UNSET.get(name, ""))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all kinds of data."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage="%(prog)s [--dataset NAME|FILE] [option ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        argument_default=argparse.SUPPRESS,
        formatter_class=Formatter,
    )
    for add, *title in GROUPS:
        add(Group(parser, *title))
    return parser


def _add_data(group: Group) -> None:
    names = "; ".join(f"{kind.noun}: {', '.join(kind.names)}, or a file {', '.join(kind.endings)}" for kind in KINDS)
    group.add("dataset", names, metavar="NAME|FILE")
    group.add("data_dir", "where the named sets' files lie", metavar="DIR")
    group.add("validation_fraction", "share of rows or cells held back for early stopping", type=float, metavar="F")


def _add_arrays(group: Group) -> None:
    group.add("label_column", "column of labels; shown at the end, not used in training", metavar="COLUMN")
    group.add("name_column", "column of the rows' names, for assignments.csv; no feature", metavar="COLUMN")
    group.add("drop_columns", "columns to leave out, such as numbers of rows or dates", nargs="+", metavar="COLUMN")
    group.add("header", "whether a csv's first line names its columns; auto: unless it is numbers", choices=HEADERS)
    group.add("separator", "between the fields of a csv, such as ';'", metavar="CHARACTER")
    group.add("decimal", "what stands before a csv's decimals: . or ,", choices=DECIMALS, metavar="CHARACTER")
    group.add("encoding", "of a csv, such as latin-1", metavar="NAME")
    group.add(
        "scaling",
        "how X is brought to the model's scale; tables: standard if normal or student_t",
        choices=[*SCALINGS[:-1], "none"],
    )


def _add_cells(group: Group) -> None:
    group.add("batch_key", "column of the batches to integrate", metavar="COLUMN")
    group.add("label_key", "column of known cell types; shown at the end, not used in training", metavar="COLUMN")
    group.add("layer", "where the counts lie; raw is adata.raw, if no layer", metavar="LAYER")
    group.add("backed", "leave X in the file, for more cells than memory holds", action="store_true")
    group.add("n_top_genes", "use so many highly variable genes (seurat_v3, by batch)", type=int, metavar="G")
    group.add("categorical_covariates", "further columns of categories to correct for", nargs="+", metavar="COLUMN")
    group.add("continuous_covariates", "columns of numbers to correct for", nargs="+", metavar="COLUMN")
    group.add("size_factor_key", "column of size factors", metavar="COLUMN")


def _add_model(group: Group) -> None:
    likelihoods = "; ".join(f"{kind.noun}: {', '.join(kind.likelihoods)}" for kind in KINDS)
    group.add("prior", "the prior on the latent space", choices=list(PRIORS))
    group.add("likelihood", f"the distribution of x; {likelihoods}", metavar="NAME")
    group.add("likelihood_options", 'as JSON, such as \'{"scale": "per_feature"}\'', type=json_value, metavar="JSON")
    group.add("components", "K, the most clusters there can be", type=int, metavar="K")
    group.add("latent_dim", "D", type=int, metavar="D")
    group.add("hidden", "widths of the encoder's layers, mirrored in the decoder", type=int, nargs="+", metavar="H")
    group.add("network", "mlp, or a small convolutional net for images", choices=["mlp", "conv"])
    group.add("covariance", "of q(z | x)", choices=list(COVARIANCES))
    told = "a full one at first; random is the authors'; arrays only"
    group.add("covariance_start", told, choices=list(COVARIANCE_STARTS))


def _add_cell_model(group: Group) -> None:
    group.add("library", "library sizes: the total counts, or log-normal by batch", choices=list(LIBRARIES))
    group.add("dropout", "in the encoder", type=float, metavar="F")
    group.add("pseudo_batch", "the batch of the pseudo-inputs", choices=list(PSEUDO_BATCHES))
    group.add("batch_balance", "discourages clusters of one batch; 0 for the paper's model", type=float, metavar="T")
    group.add(
        "encode_covariates", "whether the encoder sees batch and covariates", action=argparse.BooleanOptionalAction
    )


def _add_prior(group: Group) -> None:
    group.add("m_prior", "a cluster survives on more than about one row in M", type=granularity, metavar="M|batch")
    group.add("hyperprior", "the paper's numbers or those of its authors' code", choices=list(HYPERPRIORS))
    group.add("responsibilities", "in the MAP step; held is the paper's", choices=list(RESPONSIBILITIES))
    group.add("expectation", "over the cluster centres", choices=list(EXPECTATIONS))
    group.add("init", "pseudo-inputs start from such rows", choices=list(INITS))
    told = "whether they leave these rows in training; arrays only"
    group.add("train_pseudo_inputs", told, action=argparse.BooleanOptionalAction)
    group.add("init_centres", "where a gmm's centres start; arrays only", choices=list(INIT_CENTRES))


def _add_selection(group: Group) -> None:
    candidates = " ".join(map(str, M_PRIOR))
    group.add(
        "select", f"choose among these m_prior; {candidates} if none are named", type=float, nargs="*", metavar="M"
    )
    group.add("select_learning_rates", "choose among these too", type=float, nargs="+", metavar="R")
    group.add("select_seeds", "fits of each kind for each candidate", type=int, metavar="N")


def _add_training(group: Group) -> None:
    group.add("batch_size", "rows in a minibatch, of all processes together", type=int, metavar="M")
    group.add("learning_rate", "of the networks", type=float, metavar="R")
    group.add("prior_learning_rate", "of the prior", type=float, metavar="R")
    group.add("epochs", "at most", type=int, metavar="N")
    group.add("decay_fraction", "share of the epochs, the last, over which the rates fall", type=float, metavar="F")
    group.add("patience", "stop after N epochs without improvement; 0 for never", type=int, metavar="N")
    group.add(
        "freeze_after", "components without rows leave training after N epochs; 0 for never", type=int, metavar="N"
    )
    group.add(
        "settle", "after training, split and merge components, and group them", action=argparse.BooleanOptionalAction
    )
    group.add("monitor", "what improvement is measured by; arrays only, val_nmi uses labels", choices=list(MONITORS))
    group.add("seed", "of everything random", type=int)
    group.add("device", "auto, cpu, cuda, ...", metavar="NAME")
    group.add("dtype", "of all numbers", choices=["float32", "float64"])
    group.add("precision", "of the networks' products; all but float32 are experimental", choices=list(PRECISIONS))
    group.add("reuse_draws", "encode rows once an iteration, not twice", action=argparse.BooleanOptionalAction)
    group.add("capture", "record steps as a CUDA graph (experimental)", action=argparse.BooleanOptionalAction)
    group.add("checkpoint_every", "epochs", type=int, metavar="N")


def _add_run(group: Group) -> None:
    group.add("out", "the run folder, new or empty", type=Path, metavar="DIR")
    group.add("resume", "continue the run in this folder, interrupted or finished", type=Path, metavar="DIR")
    group.add("config", "a TOML or JSON file of these options; the command line wins", type=Path, metavar="FILE")
    group.add("quiet", "no progress bar", action="store_true")


def json_value(text: str) -> dict:
    """The value of JSON text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not JSON: {error}") from error


def granularity(text: str) -> float | str:
    """A number, or "batch"."""
    return text if text == "batch" else float(text)


#: What adds the options of each group, the group's title, and a description of it.
GROUPS = (
    (_add_data, "data"),
    (_add_arrays, "data of arrays and images"),
    (_add_cells, "data of single cells", "columns are those of adata.obs"),
    (_add_model, "model"),
    (_add_cell_model, "model of single cells"),
    (_add_prior, "granularity and the prior's inference"),
    (_add_selection, "granularity chosen without labels"),
    (_add_training, "training"),
    (_add_run, "run"),
)
