"""The folder that a run of the command line writes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import entr

from pyro_vmm import metrics, plots
from pyro_vmm.data.images import Dataset
from pyro_vmm.estimators import VMM
from pyro_vmm.estimators.storing import versions

#: Shares printed in the closing table.
SHARES_SHOWN = 15


class RunFolder:
    """Configuration, checkpoint, model, tables and figures of one run.

    Arguments:
        path: the folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint.pt"

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """A folder to resume; ``FileNotFoundError`` if it holds no run."""
        folder = cls(path)
        if not (folder.path / "config.json").is_file():
            raise FileNotFoundError(f"there is no run in {folder.path}: config.json is missing")
        return folder

    def create(self) -> None:
        """Make the folder; ``FileExistsError`` rather than write over anything."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FileExistsError(
                f"{self.path} exists; name another --out, or continue a run with --resume {self.path}"
            )
        self.path.mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        """Remove the folder again if it holds a configuration and nothing else."""
        if [path.name for path in self.path.iterdir()] == ["config.json"]:
            (self.path / "config.json").unlink()
            self.path.rmdir()

    def read_config(self) -> dict:
        """The options of the run, by their long names with underscores."""
        return json.loads((self.path / "config.json").read_text())["options"]

    def write_config(self, options: dict, model: VMM) -> None:
        """``config.json``: the options, all parameters that they resolve to, and versions."""
        content = {"options": options, "parameters": model.configuration(), "versions": versions()}
        (self.path / "config.json").write_text(json.dumps(content, indent=2, default=str) + "\n")

    def write_results(self, model: VMM, data: Dataset) -> None:
        """The model, ``history.csv``, ``assignments.csv``, ``latent.npy`` and the figures."""
        model.save(self.path / "model.pt")
        model.history_.to_csv(self.path / "history.csv", index=False)
        probabilities, z = model.predict_proba(data.x), model.transform(data.x)
        assignments(probabilities, data.row_names).to_csv(self.path / "assignments.csv", index=False)
        np.save(self.path / "latent.npy", z)
        for name, figure in figures(model, data, probabilities, z).items():
            plots.save(figure, self.path / f"{name}.png")


def assignments(probabilities: np.ndarray, row_names: np.ndarray | None = None) -> pd.DataFrame:
    """``row``, ``cluster``, ``probability`` of that cluster, and ``entropy`` (nats) of q(c | x), from (N, K)."""
    rows = np.arange(len(probabilities)) if row_names is None else row_names
    return pd.DataFrame(
        {
            "row": rows,
            "cluster": probabilities.argmax(1),
            "probability": probabilities.max(1),
            "entropy": entr(probabilities).sum(1),
        }
    )


def figures(model: VMM, data: Dataset, probabilities: np.ndarray, z: np.ndarray) -> dict:
    """The figures of a run by name; without clusters (one component) there are fewer."""
    found = {"curves": plots.training_curves(model.history_)}
    clusters = probabilities.argmax(1)
    found["latent"] = plots.latent_map(z, clusters, data.labels)
    if probabilities.shape[1] > 1:
        shares = np.bincount(clusters, minlength=probabilities.shape[1]) / len(clusters)
        found["weights"] = plots.cluster_weights(model.weights_, shares)
        found["components"] = component_figure(model, data.x, probabilities)
    return found


def component_figure(model: VMM, X: np.ndarray, probabilities: np.ndarray):
    """The paper's figure 1: what each used cluster generates, in proportion to its weight, and its exemplar."""
    used = np.unique(probabilities.argmax(1))
    weights = model.weights_[used]
    numbers = plots.samples_per_component(weights)
    samples = [model.sample(n, component=k, mean=True, random_state=0)[0] for k, n in zip(used, numbers, strict=True)]
    return plots.component_samples(samples, weights, X[probabilities[:, used].argmax(0)])


def closing_table(model: VMM, data: Dataset) -> str:
    """What a run came to, as text; scores against labels, if there are any, are marked as not used in training."""
    probabilities = model.predict_proba(data.x)
    counts = np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1])
    shares = [f"{share:.1%}" for share in counts[counts > 0] / counts.sum()]
    more = f" and {len(shares) - SHARES_SHOWN} more" if len(shares) > SHARES_SHOWN else ""
    best = model.history_.iloc[model.best_epoch_ - 1]
    lines = [
        ("rows, features", f"{len(data.x)}, {int(np.prod(data.x.shape[1:]))}"),
        ("clusters used", f"{len(shares)} of {model.n_components_}"),
        ("shares", " ".join(shares[:SHARES_SHOWN]) + more),
        ("ELBO per row", f"{best['elbo']:.2f} in training, {best['val_elbo']:.2f} in validation"),
        ("epochs", f"{model.n_iter_}, best {model.best_epoch_}"),
        ("seconds", f"{model.history_['seconds'].iloc[-1]:.1f}"),
    ]
    if data.labels is not None:
        scores = metrics.clustering_scores(data.labels, probabilities)
        used = "used for early stopping" if model.monitor == "val_nmi" else "not used in training"
        lines += [
            (f"labels ({used})", ""),
            ("  accuracy", f"{scores['accuracy_by_exemplar']:.3f} (majority {scores['accuracy_by_majority']:.3f})"),
            ("  NMI", f"{scores['nmi']:.3f}"),
            ("  ARI", f"{scores['ari']:.3f}"),
        ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in lines)
