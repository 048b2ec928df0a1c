"""The command line on arrays and images."""

from pathlib import Path

import numpy as np

from pyro_vmm.cli.kind import Kind
from pyro_vmm.data import Dataset, images
from pyro_vmm.data.user_files import OPTIONS, READERS, TABLES, ending_of
from pyro_vmm.estimators import VMM
from pyro_vmm.estimators.presets import PAPER
from pyro_vmm.likelihoods import LIKELIHOODS
from pyro_vmm.report import ArrayResults
from pyro_vmm.runtime.finite import check_finite


class Arrays(Kind):
    """Vectors, images and tables: :class:`~pyro_vmm.VMM`."""

    noun = "arrays and images"
    estimator = VMM
    names = tuple(images.DATASETS)
    endings = tuple(READERS)
    own = frozenset({"label_column", "network", *OPTIONS})
    paper = PAPER

    def suited(self, config: dict) -> dict:
        # Each column of a table has its own unit.
        return {} if ending_of(str(config["dataset"]), TABLES) is None else {"scaling": "standard"}

    def preset(self, config: dict) -> dict:
        preset = super().preset(config)
        likelihood = LIKELIHOODS.get(str(config.get("likelihood", self.defaults["likelihood"])))
        # Scaling would break values of a discrete or bounded support, and not every likelihood has a noise scale.
        suits = {
            "scaling": likelihood is not None and likelihood.any_real,
            "likelihood_options": likelihood is not None and likelihood.has_noise_scale,
        }
        return {name: value for name, value in preset.items() if suits.get(name, True)}

    def parameters(self, config: dict) -> dict:
        params = super().parameters(config)
        if "network" in config:
            params |= {"encoder": config["network"], "decoder": config["network"]}
        if params.get("scaling") == "none":
            params["scaling"] = None
        elif params.get("scaling") == "auto":  # the estimator sees an array and would not know that it was a table
            params["scaling"] = self.preset(config).get("scaling", "auto")
        return params

    def load(self, config: dict) -> Dataset:
        options = {name: config[name] for name in OPTIONS if name in config}
        data = images.load(config["dataset"], config.get("data_dir"), config.get("label_column"), **options)
        # The estimator checks this, too, but does not know the names of rows and columns.
        check_finite(data.x, data.column_names, data.row_names, str(config["dataset"]))
        return data

    def inputs(self, data: Dataset) -> np.ndarray:
        return data.x

    def fit(self, model: VMM, data: Dataset, checkpoint: Path, resume: Path | None) -> None:
        labels = data.labels if model.monitor == "val_nmi" else None
        if labels is None and model.monitor == "val_nmi":
            raise ValueError("--monitor val_nmi needs labels: name their column as --label-column")
        model.fit(data.x, labels, sample_weight=data.sample_weight, checkpoint=checkpoint, resume=resume)

    def results(self, model: VMM, data: Dataset) -> ArrayResults:
        return ArrayResults(model, data)
