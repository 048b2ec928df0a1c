"""The experiments on images: the runs, how one is fitted, and what is measured."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from sklearn.neighbors import KNeighborsClassifier

from pyro_vmm import VMM, data
from pyro_vmm.evaluation import clustering
from pyro_vmm.evaluation.surgery import elbo_surgery
from pyro_vmm.rivals import DLGMM, GMVAE, VaDE
from pyro_vmm.runtime import files
from repro.runs import Folder, Run
from repro.scales import CLASSES, Scale

PRIORS = {"vae": "standard_normal", "vamp": "vamp", "gmm": "gmm", "vmm": "vmm"}
RIVALS = {"vade": VaDE, "gmvae": GMVAE, "dlgmm": DLGMM}
#: The GMVAE with other numbers of components, by its name in table 1.
GMVAES = {f"gmvae-{k}": k for k in (16, 30)}
RIVALS |= dict.fromkeys(GMVAES, GMVAE)
#: The methods whose latent space k-means and a Bayesian mixture cluster.
BASELINES = ("vae", "pca")
CLUSTERING = ("vamp", "vade", "gmm", "vmm", "gmvae", "dlgmm", "vae", "pca")
#: The rows of tables 1 and 2. The run that makes a latent space also clusters it.
TITLES = {
    "vae": "N(0, I)",
    "vamp": "VampPrior",
    "vade": "VaDE (given K)",
    "gmm": "GMM",
    "vmm": "VMM",
    "gmvae": "GMVAE (given K)",
    "gmvae-16": "GMVAE, K = 16",
    "gmvae-30": "GMVAE, K = 30",
    "dlgmm": "DLGMM (given K)",
    "k_means_pca": "k-means on PCA (given K)",
    "mixture_pca": "Bayesian mixture on PCA",
    "k_means_vae": "k-means on the VAE's z (given K)",
    "mixture_vae": "Bayesian mixture on the VAE's z",
}

NEIGHBOURS_NOTE = (
    " The accuracy of neighbours is that of a classifier by the three nearest training images in the latent space, on "
    "held-back images: it is given labels. The paper's number of the DLGMM is one, not an accuracy of clusters."
)

# --- the runs ---


def clustering_runs(scale: Scale, trials: int) -> Iterator[Run]:
    """The runs of table 1; trials are outermost, so that every method soon has a first number."""
    for trial in range(trials):
        for dataset in scale.latent_dims:
            for method in (*CLUSTERING, *(f"gmvae-{k}" for k in scale.gmvae_components)):
                for configuration, changes in scale.configurations.items():
                    # Without clusters there is nothing to compare with labels.
                    if method not in BASELINES or "val_elbo" in changes.values():
                        yield planned("clustering", scale, dataset, method, configuration, trial, changes)


def sweep_runs(scale: Scale, trials: int) -> Iterator[Run]:
    """The runs of figure 3: over batch sizes with ``m_prior`` equal to them, as in the paper, and over ``m_prior``.

    Both sweeps share table 1's own run.
    """
    name, base = next(iter(scale.configurations.items()))
    for trial in range(trials):
        for dataset in scale.latent_dims:
            usual = planned("clustering", scale, dataset, "vmm", name, trial, base)
            yield usual
            for size in scale.sweep:
                for kind, changes in (("batch", {"batch_size": size, "m_prior": size}), ("m_prior", {"m_prior": size})):
                    run = planned(
                        "clustering", scale, dataset, "vmm", f"{name}-{kind}-{size}", trial, {**base, **changes}
                    )
                    if run.settings != usual.settings:
                        yield run


def surgery_runs(scale: Scale, trials: int) -> Iterator[Run]:
    """The runs of table 2."""
    dataset = list(scale.latent_dims)[-1]
    for trial in range(trials):
        for method in PRIORS:
            run = planned("surgery", scale, dataset, method, "label-free", trial, scale.surgery)
            draws = {"n_samples": scale.n_samples}
            if scale.n_marginal is not None:
                draws["n_marginal"] = scale.n_marginal
            yield replace(run, settings={**run.settings, **draws})


def planned(kind: str, scale: Scale, dataset: str, method: str, configuration: str, trial: int, changes: dict) -> Run:
    """A run with the settings of a scale and these changes."""
    latent_dim = {"latent_dim": scale.latent_dims[dataset]}
    settings: dict = {"rows": scale.rows}
    if method in BASELINES:
        settings["baselines"] = {**scale.baselines, **latent_dim}
    if method in PRIORS:
        settings["estimator"] = {**latent_dim, **scale.shared, **scale.ours, "prior": PRIORS[method], **changes}
    elif method in RIVALS:
        special = scale.vade if method == "vade" else {}
        n_components = GMVAES.get(method, CLASSES)
        settings["estimator"] = {"n_components": n_components, **latent_dim, **scale.shared, **special, **changes}
    elif method not in BASELINES:
        raise ValueError(f"method={method!r} should be one of {(*CLUSTERING, *GMVAES)}")
    return Run(kind, dataset, method, configuration, trial, settings)


# --- one run ---

Progress = Callable[[int, int], None]


@lru_cache(maxsize=2)
def load(dataset: str, rows: int | None, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The first ``rows`` images (N, H, W) and labels (N,), or all."""
    found = data.load(dataset, data_dir)
    assert found.labels is not None, "the data sets of the paper have labels"
    return found.x[:rows], found.labels[:rows]


def estimator(run: Run) -> VMM:
    """The estimator before its fit. Its seed is the trial's, which alone determines folds and initial networks."""
    kind = RIVALS.get(run.method, VMM)
    model = kind(**run.settings["estimator"], random_state=run.trial)
    # The priors share the settings of a scale, and some priors do not take all of them.
    return model.with_prior(model.prior) if isinstance(model, VMM) else model


def fit(run: Run, folder: Folder, x: np.ndarray, labels: np.ndarray, progress: Progress) -> VMM:
    """Fit or continue a fit; writes the model and its history into the folder."""
    model = estimator(run)
    model.fit(
        x,
        labels if model.monitor == "val_nmi" else None,
        callbacks=[lambda row, vae: progress(row["epoch"], model.training_.epochs)],
        checkpoint=folder.checkpoint,
        resume=folder.checkpoint if folder.checkpoint.exists() else None,
    )
    model.save(folder.path / "model.pt")
    files.write_table(folder.path / "history.csv", model.history_)
    return model


def cluster(run: Run, folder: Folder, data_dir: Path | None, progress: Progress) -> dict:
    """A run of table 1: scores of each of its clusterings, on all images."""
    x, labels = load(run.dataset, run.settings["rows"], data_dir)
    if run.method == "pca":
        settings = run.settings["baselines"]
        z = PCA(settings["latent_dim"], random_state=run.trial).fit_transform(x.reshape(len(x), -1))
        return {"scores": latent_scores(z, labels, settings, run.trial, "pca")}
    model = fit(run, folder, x, labels, progress)
    z = model.transform(x)
    if run.method == "vae":
        scores = latent_scores(z, labels, run.settings["baselines"], run.trial, "vae")
    else:
        scores = {run.method: clustering.clustering_scores(labels, model.predict_proba(x))}
    held_back = np.isin(np.arange(len(x)), model.validation_rows_)
    neighbours = {"neighbour_accuracy": neighbour_accuracy(z, labels, held_back)}
    scores = {name: {**values, **neighbours} for name, values in scores.items()}
    return {"scores": scores, "costs": costs(model)}


def neighbour_accuracy(z: np.ndarray, labels: np.ndarray, held_back: np.ndarray, n_neighbours: int = 3) -> float:
    """The share of held-back rows that their nearest training rows in the latent space label rightly.

    It is one minus the error of a k-nearest-neighbour classifier, the measure that the DLGMM's authors report
    (Nalisnick, Hertel & Smyth 2016; ``knn_mnist.py`` of github.com/enalisnick/mixture_density_VAEs, with k = 3). It
    measures how well z separates the classes, not how rows are clustered, and the classifier gets labels. Theirs uses
    draws of z; ours uses means.

    Arguments:
        z: latent means of all rows, (N, D).
        labels: (N,).
        held_back: whether a row is scored, (N,); the other rows train the classifier.
        n_neighbours: k.
    """
    classifier = KNeighborsClassifier(n_neighbours).fit(z[~held_back], labels[~held_back])
    return float(classifier.score(z[held_back], labels[held_back]))


def latent_scores(z: np.ndarray, labels: np.ndarray, settings: dict, seed: int, space: str) -> dict[str, dict]:
    """Scikit-learn's clusterings of a latent space z (N, D)."""
    k_means = KMeans(CLASSES, n_init=settings["n_init"], random_state=seed).fit(z)
    # These change the exemplars only, not the clusters: rows much nearer to one centre than to the others.
    squares = k_means.transform(z) ** 2
    near = torch.as_tensor(-squares / squares.mean()).double().softmax(1).numpy()
    mixture = BayesianGaussianMixture(
        n_components=settings["n_components"], max_iter=settings["max_iter"], random_state=seed
    )
    with unconverged():
        probabilities = mixture.fit(z.astype(float)).predict_proba(z.astype(float))
    return {
        f"k_means_{space}": clustering.clustering_scores(labels, near),
        f"mixture_{space}": clustering.clustering_scores(labels, probabilities),
    }


@contextmanager
def unconverged() -> Iterator[None]:
    """Suppress the warning that a mixture has used up its iterations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def dissect(run: Run, folder: Folder, data_dir: Path | None, progress: Progress) -> dict:
    """A run of table 2: the ELBO's terms on the validation fold."""
    x, labels = load(run.dataset, run.settings["rows"], data_dir)
    model = fit(run, folder, x, labels, progress)
    rows = model.to_tensor(x[model.validation_rows_])
    n_samples, n_marginal = run.settings["n_samples"], run.settings.get("n_marginal")
    terms = elbo_surgery(model.vae_, rows, n_samples=n_samples, n_marginal=n_marginal)
    check_identities(terms)
    scores = {**terms, "negative_distortion": -terms["distortion"]}
    return {"scores": {run.method: scores}, "costs": costs(model)}


def check_identities(terms: dict[str, float], tolerance: float = 1e-3) -> None:
    """Raise ``ArithmeticError`` unless the terms fit equation (12), up to rounding, and the ELBO is below log p(x)."""
    pairs = {
        "ELBO = -distortion - rate": (terms["elbo"], -terms["distortion"] - terms["rate"]),
        "rate = mutual information + marginal KL": (
            terms["rate_marginal"],
            terms["mutual_information"] + terms["marginal_kl"],
        ),
    }
    for name, (left, right) in pairs.items():
        if not abs(left - right) <= tolerance * (1 + abs(left)):
            raise ArithmeticError(f"{name} does not hold: {left} and {right}")
    if not terms["elbo"] <= terms["log_px"] + tolerance * (1 + abs(terms["elbo"])):
        raise ArithmeticError(f"the ELBO {terms['elbo']} is above log p(x), {terms['log_px']}")


def costs(model: VMM) -> dict[str, float]:
    return {
        "epochs": model.n_iter_,
        "best_epoch": model.best_epoch_,
        "seconds": model.history_["seconds"].iloc[-1],
        "val_elbo": model.history_["val_elbo"].max(),
    }
