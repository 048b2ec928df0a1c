"""Write stored models by the code of another commit; the tests load them and expect the answers that this prints.

    mkdir OLD && git archive COMMIT | tar -x -C OLD
    PYTHONPATH=OLD python tests/stored/make.py first tests/stored

``MADE_BY`` names the commit of each file.
"""

import argparse
import json
from pathlib import Path

import numpy as np

MADE_BY = {
    "first": "1ca2f1b",  # the first that read what it wrote
    "first_cells": "3fd0e55",  # the first with models of cells
    "scheduled": "ebb3e4c",  # the last whose learning rates fell by a number of epochs
    "random_start": "d5aaac3",  # the last whose covariances started as the authors'
    "unsettled": "98038e1",  # the last before components were settled
    "rival": "98038e1",
    "shifted": "417988a",  # the last whose novelty shifted one number by batch
    "mapped": "3c9da1f",
}
ARRAYS = ("first", "scheduled", "random_start", "unsettled")
X = np.random.default_rng(0).normal(size=(60, 4))
TINY = {"hidden": (4,), "epochs": 2, "batch_size": 32, "random_state": 0}


def cells(batches: str = "ab", n: int = 60, seed: int = 0):
    """Counts of eight genes, two kinds of cells in batches of these names; those of "c" are noisier: an AnnData."""
    from anndata import AnnData

    random, rows, genes = np.random.default_rng(seed), np.arange(n), np.arange(8)
    batch = np.array([batches[row // 2 % len(batches)] for row in rows])
    rate = 5.0 + 40.0 * (rows[:, None] % 2 == genes % 2) + 3.0 * (batch == "b")[:, None]
    rate *= np.where((batch == "c")[:, None], random.uniform(0.1, 2.5, rate.shape), 1.0)
    found = AnnData(random.poisson(rate).astype(np.float32))
    found.var_names = [f"gene{i}" for i in genes]
    found.obs["batch"] = batch
    return found


def fitted(name: str):
    """The model of a name."""
    import pyro_vmm

    if name == "rival":
        from pyro_vmm.rivals import VaDE

        return VaDE(3, 2, pretraining_epochs=1, **TINY).fit(X)
    if name in ARRAYS:
        return pyro_vmm.VMM(4, 2, **TINY).fit(X)
    settings = {**TINY, "batch_key": "batch", "n_components": 4, "latent_dim": 2, "epochs": 20}
    model = pyro_vmm.SingleCellVMM(**settings).fit(cells())
    return model if name == "first_cells" else model.map_query(cells("bc", seed=1), new_clusters="auto", epochs=3)


def answers(name: str, model) -> dict[str, list]:
    """What a model says of a few rows, old ones and, of a mapped model, new ones."""
    if name in (*ARRAYS, "rival"):
        few = X[:6]
    else:
        few = cells()[:6] if name == "first_cells" else cells("bc", seed=1)[:6]
    found = {"labels": model.predict(few), "scores": model.score_samples(few, 5)}
    return {key: np.asarray(value).tolist() for key, value in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MADE_BY)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    model = fitted(options.name)
    model.save(options.folder / f"{options.name}.pt")
    print(json.dumps({options.name: answers(options.name, model)}))
