"""Settings by name, in place of what "auto" makes of the data."""

from typing import Any

#: Of images in the paper (section 4.1 and its supplement) and, where it is silent, in its authors' code.
PAPER: dict[str, Any] = {
    "latent_dim": 10,
    "hidden": (500, 500, 2000),
    "hyperprior": "reference",
    "covariance_start": "random",
    "likelihood_options": {"initial_scale": 1.0},
    "batch_size": 256,
    "learning_rate": 1e-4,
    "decay_fraction": 0.0,
    "epochs": 1000,
    "patience": 100,
    "settle": False,
}
#: Of cells there (section 4.2); the networks of each data set are :data:`pyro_vmm.data.CELL_PRESETS`.
PAPER_CELLS: dict[str, Any] = {
    "batch_balance": 0.0,
    "pseudo_batch": "trained",
    "decay_fraction": 0.0,
    "plateau": None,
    "epochs": 400,
    "settle": False,
}
#: Their names.
PRESETS = ("paper",)
