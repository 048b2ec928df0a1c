"""The experiments on cells: the methods and scores of :mod:`repro.integration`, as runs."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_vmm import data
from repro.runs import Folder, Run
from repro.scales import Scale

if TYPE_CHECKING:
    from anndata import AnnData

PACKAGES = ("scvi", "scib_metrics", "harmonypy", "scanorama", "skmisc", "leidenalg")
#: The rows of tables 3 and 4.
TITLES = {
    "pca": "PCA",
    "harmony": "Harmony",
    "scanorama": "Scanorama",
    "scvi": "scVI (scvi-tools)",
    "standard_normal": "N(0, I)",
    "vamp": "VampPrior",
    "gmm": "GMM",
    "vmm": "VMM",
}
OURS = ("standard_normal", "vamp", "gmm", "vmm")
#: The data sets of the supplement's figures.
SUPPLEMENT = {"figure5": "cortex", "figure6": "pbmc", "figure7": "split_seq"}


class Unavailable(Exception):
    """A file or package that a run needs is not on this machine."""


def integration_runs(scale: Scale, trials: int) -> Iterator[Run]:
    """The runs of tables 3 and 4."""
    for trial in range(trials):
        for dataset in scale.cell_sets:
            for method in TITLES:
                options = {"epochs": scale.cell_epochs} if scale.cell_epochs and method in ("scvi", *OURS) else {}
                if method in OURS:
                    options.update(data.CELL_PRESETS.get(dataset, {}))
                yield Run("cells", dataset, method, "defaults", trial, options)


def figure_runs(*datasets: str) -> Callable[[Scale, int], list[Run]]:
    """The four priors' runs on these data sets, for figures 5 to 7; without a name on all others, for figure 2."""

    def runs(scale: Scale, trials: int) -> list[Run]:
        shown = datasets or set(scale.cell_sets) - set(SUPPLEMENT.values())
        every = integration_runs(scale, min(trials, 1))
        return [run for run in every if run.dataset in shown and run.method in OURS]

    return runs


def integrate(run: Run, folder: Folder, data_dir: Path | None, progress: Callable[[int, int], None]) -> dict:
    """Fit in a fresh process and score: a run of the integration benchmark."""
    from repro.integration import methods, scores

    check_packages()
    adata, reference = load(run.dataset, data_dir)
    method = methods.METHODS[run.method]
    if method.integrates and adata.obs["batch"].nunique() == 1:
        return {"scores": {}, "note": "a single batch has nothing to integrate"}
    options = dict(run.settings)
    if run.method in OURS:
        options["checkpoint"] = str(folder.checkpoint)
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count() or 1
    found = asdict(methods.fit_alone(run.method, adata, run.trial, options, threads))
    embedding, clusters = found.pop("embedding"), found.pop("clusters")
    found.pop("settings")
    methods.store_arrays(folder.path / "embedding.npz", embedding, clusters)
    return {"scores": {run.method: scores.scores(reference, embedding, clusters)}, "costs": found}


def check_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise Unavailable(f"{', '.join(missing)} not installed: pip install -e '.[bench]'")


@lru_cache(maxsize=1)
def load(dataset: str, data_dir: Path | None) -> tuple["AnnData", "AnnData"]:
    """Counts with ``obs["batch"]`` and ``obs["cell_type"]``, and the same cells log-normalised."""
    from repro.integration import data as files_of_integration

    try:
        if dataset in files_of_integration.TITLES:
            adata = files_of_integration.load(dataset, data_dir)
        else:
            adata = data.load_cells(dataset, data_dir)
            if "batch" not in adata.obs:
                adata.obs["batch"] = "all"
            for column in ("batch", "cell_type"):
                adata.obs[column] = adata.obs[column].astype(str).astype("category")
    except (OSError, ImportError, ValueError) as error:
        raise Unavailable(f"no {dataset}: {error}") from error
    return adata, files_of_integration.log_normalised(adata)
