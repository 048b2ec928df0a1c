"""The methods of the integration benchmark: from raw counts to an embedding and, for some, clusters.

Each is ``method(adata, seed, **options) -> Result`` and runs in its own process. Packages are imported inside the
methods, before the clock starts: they are optional, and the memory of a process should be that of its method.
"""

import io
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
from anndata import AnnData

from repro.integration.data import log_normalised

NAN = float("nan")


@dataclass
class Result:
    """The result of a method on N cells.

    Arguments:
        embedding: (N, D).
        clusters: the method's own, (N,), or None.
        seconds: the time of the fit, without imports.
        processor_seconds: the processor time of the same, of all threads.
        training_seconds: the time of its epochs, without set-up and without the steps after them.
        peak_mb: the peak of the process's memory, including imports and data.
        start_mb: the peak when the fit began.
        epochs: passes over the training data.
        n_train: cells in the training data.
        val_elbo: nats per validation cell, at the epoch whose encoder made the embedding.
        best_val_elbo: the same at the best epoch.
        settings: the method's settings, for the record.
    """

    embedding: np.ndarray
    clusters: np.ndarray | None
    seconds: float
    peak_mb: float
    start_mb: float
    epochs: float = NAN
    n_train: float = NAN
    training_seconds: float = NAN
    processor_seconds: float = NAN
    val_elbo: float = NAN
    best_val_elbo: float = NAN
    settings: dict = field(default_factory=dict)


def store_arrays(path: Path, embedding: np.ndarray, clusters: np.ndarray | None) -> None:
    """Write the embedding (N, D) as float32, and the clusters (N,) if there are any, to an ``.npz`` file."""
    from pyro_vmm.runtime import files

    buffer, arrays = io.BytesIO(), {"embedding": embedding.astype(np.float32), "clusters": clusters}
    np.savez_compressed(buffer, **{name: values for name, values in arrays.items() if values is not None})
    files.write(buffer, path)


class Costs(TypedDict):
    """The costs of a fit, as in :class:`Result`."""

    seconds: float
    processor_seconds: float
    peak_mb: float
    start_mb: float


class Measured:
    """Seconds and memory of a ``with`` block."""

    def __enter__(self) -> "Measured":
        self.start_mb, self._start, self._processor = peak_mb(), time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_) -> None:
        self.seconds, self.peak_mb = time.perf_counter() - self._start, peak_mb()
        self.processor_seconds = time.process_time() - self._processor

    def costs(self) -> Costs:
        return {
            "seconds": self.seconds,
            "processor_seconds": self.processor_seconds,
            "peak_mb": self.peak_mb,
            "start_mb": self.start_mb,
        }


def peak_mb() -> float:
    """The most memory that this process ever held."""
    status = Path("/proc/self/status")
    # Linux hands the parent's peak on to a child's ru_maxrss, but not to its VmHWM.
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


# --- methods ---


def pca(adata: AnnData, seed: int) -> Result:
    """Principal components of log-normalised counts: no integration."""
    import scanpy  # noqa: F401

    with Measured() as fit:
        embedding = log_normalised(adata).obsm["X_pca"]
    return Result(embedding, None, **fit.costs())


def harmony(adata: AnnData, seed: int) -> Result:
    """Harmony (Korsunsky et al. 2019) on the principal components."""
    import scanpy  # noqa: F401
    from harmonypy import run_harmony

    settings = {"epsilon_harmony": 1e-5, "max_iter_harmony": 20}
    with Measured() as fit:
        components = log_normalised(adata).obsm["X_pca"]
        # Not scanpy's wrapper, which expects the transposed result of harmonypy 1.
        harmony = run_harmony(
            components, adata.obs, "batch", **settings, random_state=seed, ncores=_threads(), verbose=False
        )
        embedding = harmony.Z_corr
    return Result(embedding, None, **fit.costs(), settings=settings)


def scanorama(adata: AnnData, seed: int) -> Result:
    """Scanorama (Hie et al. 2019) on log-normalised counts, batch by batch."""
    import scanorama
    import scanpy  # noqa: F401

    with Measured() as fit:
        normalised = log_normalised(adata)
        rows = [np.flatnonzero(adata.obs["batch"] == batch) for batch in adata.obs["batch"].cat.categories]
        genes = [adata.var_names.to_numpy()] * len(rows)
        with redirect_stdout(None):  # it always prints the number of genes
            parts, _ = scanorama.integrate([normalised.X[index] for index in rows], genes, verbose=0, seed=seed)
        embedding = np.empty((adata.n_obs, parts[0].shape[1]))
        embedding[np.concatenate(rows)] = np.concatenate(parts)
    return Result(embedding, None, **fit.costs())


def scvi(adata: AnnData, seed: int, epochs: int | None = None) -> Result:
    """SCVI of scvi-tools (Lopez et al. 2018), stopped by the validation ELBO; keeps the last epoch's parameters.

    Epochs are by its own rule if none are given: 400 for up to 20,000 cells, fewer for more.
    """
    import scvi
    from scvi.model import SCVI

    network = {"n_hidden": 128, "n_layers": 1, "n_latent": 10, "dropout_rate": 0.1, "gene_likelihood": "zinb"}
    training = {
        "max_epochs": epochs,
        "batch_size": 128,
        "train_size": 0.9,
        "early_stopping": True,
        "early_stopping_patience": 45,
        "check_val_every_n_epoch": 1,
        "plan_kwargs": {"lr": 1e-3, "n_epochs_kl_warmup": None},
    }
    quieten_lightning()
    scvi.settings.seed = seed
    data = adata.copy()  # it writes into it
    with Measured() as fit:
        SCVI.setup_anndata(data, batch_key="batch")
        model = SCVI(data, **network)
        start = time.perf_counter()
        model.train(**training, accelerator="cpu", enable_progress_bar=False)
        training_seconds = time.perf_counter() - start
    elbo = -model.history["elbo_validation"].to_numpy(float).ravel()
    return Result(
        model.get_latent_representation(),
        None,
        **fit.costs(),
        epochs=len(elbo),
        n_train=len(model.train_indices),
        training_seconds=training_seconds,
        val_elbo=elbo[-1],
        best_val_elbo=elbo.max(),
        settings={**network, **training},
    )


def pyro_vmm(adata: AnnData, seed: int, prior: str = "vmm", checkpoint: str | None = None, **options) -> Result:
    """SingleCellVMM at its defaults except ``options``; keeps the parameters of the best epoch.

    It continues from the file ``checkpoint`` if that exists; time and memory are then those of the rest.
    """
    from pyro_vmm import SingleCellVMM
    from pyro_vmm.priors import prior_class

    model = SingleCellVMM("batch", prior=prior, random_state=seed, **{"device": "cpu", **options})
    with Measured() as fit:
        model.fit(adata, checkpoint=checkpoint, resume=checkpoint if checkpoint and Path(checkpoint).exists() else None)
    kept = model.history_.set_index("epoch")["val_elbo"].get(model.best_epoch_, NAN)
    return Result(
        model.transform(adata),
        model.labels_ if prior_class(prior).has_clusters else None,
        **fit.costs(),
        epochs=model.n_iter_,
        n_train=adata.n_obs - int(model.validation_fraction * adata.n_obs),
        # The history has the time of the epochs, without the steps that a mixture takes afterwards.
        training_seconds=model.history_["seconds"].iloc[-1],
        val_elbo=kept,
        best_val_elbo=model.history_["val_elbo"].max(),
        settings={name: value for name, value in model.get_params(deep=False).items() if name != "random_state"},
    )


def quieten_lightning() -> None:
    """Suppress notes on accelerators, seeds, and data loaders without workers."""
    import logging
    import warnings

    import lightning.pytorch  # noqa: F401  its import sets the levels

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", 0))


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Arguments:
        title: its name in the tables.
        fit: a function from (adata, seed, **options) to a Result.
        integrates: whether it only integrates, so that it needs several batches.
        options: the command's options that it takes, "epochs" or "settings".
    """

    title: str
    fit: Callable[..., Result]
    integrates: bool = False
    options: tuple[str, ...] = ()


OURS = ("epochs", "settings")
METHODS = {
    "pca": Method("PCA", pca),
    "harmony": Method("Harmony", harmony, integrates=True),
    "scanorama": Method("Scanorama", scanorama, integrates=True),
    "scvi": Method("scVI (scvi-tools)", scvi, options=("epochs",)),
    "standard_normal": Method("standard normal (ours)", partial(pyro_vmm, prior="standard_normal"), options=OURS),
    "vamp": Method("VampPrior (ours)", partial(pyro_vmm, prior="vamp"), options=OURS),
    "gmm": Method("GMM (ours)", partial(pyro_vmm, prior="gmm"), options=OURS),
    "vmm": Method("VMM (ours)", partial(pyro_vmm, prior="vmm"), options=OURS),
}


# --- processes ---


def limit_threads(threads: int) -> None:
    """Limit the threads of libraries that are not yet imported, here and in processes started from here."""
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    os.environ.update(dict.fromkeys(variables, str(threads)))


def fit_alone(name: str, adata: AnnData, seed: int, options: dict, threads: int) -> Result:
    """Run a method in a fresh process, with its own memory and without the state of other methods."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_fit, name, adata, seed, options, threads).result()


def _fit(name: str, adata: AnnData, seed: int, options: dict, threads: int) -> Result:
    import torch

    torch.set_num_threads(threads)
    return METHODS[name].fit(adata, seed, **options)
