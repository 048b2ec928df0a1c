"""The command line: options and configuration files to an estimator and a run folder."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pyro_vmm.data import images
from pyro_vmm.estimators import VMM
from pyro_vmm.estimators.building import INITS, SCALINGS
from pyro_vmm.hyperpriors import HYPERPRIORS
from pyro_vmm.likelihoods import LIKELIHOODS
from pyro_vmm.networks import COVARIANCES
from pyro_vmm.priors import EXPECTATIONS, PRIORS, RESPONSIBILITIES
from pyro_vmm.runs import RunFolder, closing_table
from pyro_vmm.training import MONITORS, TrainingDiverged

PAPER = {
    "learning_rate": 1e-4,
    "likelihood_options": {"initial_scale": 1.0},
    "validation_fraction": 1 / 7,
    "epochs": 1000,
    "patience": 100,
}
#: What suits a data set better than the estimator's defaults; "file" is for the user's own.
PRESETS: dict[str, dict] = {
    "digits": {
        "latent_dim": 6,
        "hidden": [128, 128],
        "hyperprior": "reference",
        "learning_rate": 1e-3,
        "epochs": 265,
    },
    # The paper's settings; 1/7 are as many rows as the official test sets have.
    "mnist": {**PAPER, "latent_dim": 10},
    "fashion_mnist": {**PAPER, "latent_dim": 30},
    "table": {"scaling": "standard"},
    "file": {},
}

# Options that are parameters of VMM under another name.
RENAMED = {"components": "n_components", "seed": "random_state"}
# Options that are not parameters of VMM.
OWN = ("dataset", "data_dir", "label_column", "network")


def build_parser() -> argparse.ArgumentParser:
    """The parser; an option that is not given leaves no trace, so that a configuration file can give it."""
    parser = argparse.ArgumentParser(
        prog="fit.py",
        description="Cluster a data set with a VampPrior Mixture Model, without saying how many clusters there are.",
        epilog="Without any option: scikit-learn's bundled handwritten digits, in less than a minute.",
        argument_default=argparse.SUPPRESS,
    )
    defaults = VMM().get_params()

    def option(group, flag, help, **kwargs):
        name = flag.lstrip("-").replace("-", "_")
        default = defaults.get(RENAMED.get(name, name))
        group.add_argument(flag, help=help if default is None else f"{help} (default: {default})", **kwargs)

    data = parser.add_argument_group("data")
    names = ", ".join(images.DATASETS)
    option(data, "--dataset", f"{names}, or a file .npy, .npz, .csv, .parquet (default: digits)", metavar="NAME|FILE")
    option(data, "--data-dir", "where MNIST and Fashion-MNIST lie (default: $PYRO_VMM_DATA)", metavar="DIR")
    option(data, "--label-column", "column of a file that holds labels; shown at the end, not used in training")
    option(
        data, "--scaling", "how X is brought to the model's scale; tables: standard", choices=[*SCALINGS[:-1], "none"]
    )
    option(data, "--validation-fraction", "share of rows held back for early stopping", type=float, metavar="F")

    model = parser.add_argument_group("model")
    option(model, "--prior", "the prior on the latent space", choices=list(PRIORS))
    option(model, "--likelihood", "the distribution of the data", choices=list(LIKELIHOODS))
    option(model, "--likelihood-options", 'as JSON, such as \'{"scale": "per_feature"}\'', type=_json, metavar="JSON")
    option(model, "--components", "K, the most clusters there can be", type=int, metavar="K")
    option(model, "--latent-dim", "D", type=int, metavar="D")
    option(
        model, "--hidden", "widths of the encoder's layers, mirrored in the decoder", type=int, nargs="+", metavar="H"
    )
    option(model, "--network", "mlp or a small convolutional net for images (default: mlp)", choices=["mlp", "conv"])
    option(model, "--covariance", "of q(z | x)", choices=list(COVARIANCES))

    prior = parser.add_argument_group("granularity and the prior's inference")
    option(prior, "--m-prior", "a cluster survives on more than about one row in M", type=_m_prior, metavar="M|batch")
    option(prior, "--hyperprior", "the paper's numbers or those of its authors' code", choices=list(HYPERPRIORS))
    option(
        prior,
        "--responsibilities",
        "in the MAP step (default: held with the paper's hyper-prior, differentiated with the reference's)",
        choices=list(RESPONSIBILITIES),
    )
    option(prior, "--expectation", "over the cluster centres", choices=list(EXPECTATIONS))
    option(prior, "--init", "pseudo-inputs start from such rows", choices=list(INITS))

    training = parser.add_argument_group("training")
    option(training, "--batch-size", "rows in a minibatch", type=int, metavar="M")
    option(training, "--learning-rate", "of the networks", type=float, metavar="R")
    option(training, "--prior-learning-rate", "of the prior (default: that of the networks)", type=float, metavar="R")
    option(training, "--epochs", "at most", type=int, metavar="N")
    option(training, "--patience", "stop after N epochs without improvement; 0 for never", type=int, metavar="N")
    option(training, "--monitor", "what improvement is measured by; val_nmi uses the labels", choices=list(MONITORS))
    option(training, "--seed", "of everything random (default: 0)", type=int)
    option(training, "--device", "auto, cpu, cuda, ...", metavar="NAME")
    option(training, "--dtype", "precision", choices=["float32", "float64"])
    option(training, "--checkpoint-every", "epochs", type=int, metavar="N")

    run = parser.add_argument_group("run")
    option(run, "--out", "the run folder, new or empty (default: runs/DATASET-PRIOR-TIME)", type=Path, metavar="DIR")
    option(run, "--resume", "continue the run in this folder, interrupted or finished", type=Path, metavar="DIR")
    option(run, "--config", "a TOML or JSON file of these options; the command line wins", type=Path, metavar="FILE")
    option(run, "--quiet", "no progress bar", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, fit, write the run folder and print the closing table; returns the exit status."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    try:
        return _run(given)
    except TrainingDiverged as error:
        print(f"{parser.prog}: training stopped: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2


def _run(given: dict) -> int:
    resume, out, quiet = given.pop("resume", None), given.pop("out", None), given.pop("quiet", False)
    if resume is not None:
        if out is not None or "config" in given:
            raise ValueError("--resume takes its folder and configuration from the run; leave out --out and --config")
        folder = RunFolder.existing(resume)
        config = {**folder.read_config(), **given}
    else:
        config = resolve(given)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        default = Path("runs", f"{Path(str(config['dataset'])).stem}-{config.get('prior', 'vmm')}-{stamp}")
        folder = RunFolder(out or default)
    data = images.load(config["dataset"], config.get("data_dir"), config.get("label_column"))
    model = estimator(config, progress=not quiet)
    if resume is None:
        folder.create()
        folder.write_config(config, model)
    try:
        model.fit(
            data.x,
            data.labels if model.monitor == "val_nmi" else None,
            checkpoint=folder.checkpoint,
            resume=folder.checkpoint if resume is not None and folder.checkpoint.exists() else None,
        )
        folder.write_results(model, data)
    except KeyboardInterrupt:
        print(f"\ninterrupted; continue with --resume {folder.path}", file=sys.stderr)
        return 130
    except ValueError:  # told before any training
        if resume is None:
            folder.discard()
        raise
    # Only now for a resumed run: what it changes must first have proved to fit.
    folder.write_config(config, model)
    print(closing_table(model, data), f"results in {folder.path}", sep="\n")
    return 0


def resolve(given: dict) -> dict:
    """Options by precedence: the command line, the configuration file, the data set's preset."""
    from_file = read_config(given["config"]) if "config" in given else {}
    config = {"dataset": "digits", "seed": 0, **from_file, **{k: v for k, v in given.items() if k != "config"}}
    path = Path(str(config["dataset"]))
    kind = "table" if path.suffix in (".csv", ".parquet") else "file"
    return {**PRESETS.get(config["dataset"], PRESETS[kind]), **config}


def read_config(path: Path) -> dict:
    """Options from a TOML or JSON file, by their long names with underscores."""
    if not path.is_file():
        raise FileNotFoundError(f"--config: there is no file {path}")
    try:
        if path.suffix == ".json":
            config = json.loads(path.read_text())
        else:
            config = _toml().loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"--config: {path} is neither TOML nor JSON as its ending says: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config: {path} should hold names and values")
    known = {action.dest for action in build_parser()._actions} - {"help", "config", "resume", "out", "quiet"}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(f"--config: {path} has unknown options {unknown}; expected some of {sorted(known)}")
    return config


def estimator(config: dict, progress: bool) -> VMM:
    """The estimator that resolved options describe."""
    params = {RENAMED.get(name, name): value for name, value in config.items() if name not in OWN}
    if "network" in config:
        params |= {"encoder": config["network"], "decoder": config["network"]}
    if params.get("scaling") == "none":
        params["scaling"] = None
    if params.get("patience") == 0:
        params["patience"] = None
    return VMM(**params, progress=progress)


def _toml():
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    return tomllib


def _json(text: str) -> dict:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error


def _m_prior(text: str) -> float | str:
    return text if text == "batch" else float(text)
