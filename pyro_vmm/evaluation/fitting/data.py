"""What many fits of an estimator to the same data share: the checks, a fingerprint, and the fit to a part."""

import zlib
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import check_array

from pyro_vmm.data.cell_checks import check_cells
from pyro_vmm.data.cells import CellBatches
from pyro_vmm.estimators import VMM, SingleCellVMM, inputs
from pyro_vmm.estimators.base import Estimator
from pyro_vmm.estimators.building import likelihood_options
from pyro_vmm.evaluation.fitting.parts import take_to_train
from pyro_vmm.likelihoods import Likelihood, likelihood_class, of_counts
from pyro_vmm.runtime import finite

# Parameters that do not change a fit, and the seed.
_WITHOUT_EFFECT = ("progress", "device", "capture", "checkpoint_every", "random_state")


def check_judged(estimator: Estimator, held_out: float, kind: str) -> None:
    """Raise ``ValueError`` unless fits can be scored on a share of the rows, and without labels."""
    if estimator._training_settings().get("monitor") == "val_nmi":
        raise ValueError(f"monitor='val_nmi' uses labels, which a {kind} does without; expected 'val_elbo'")
    if not (isinstance(held_out, Real) and 0 < held_out < 1):
        raise ValueError(f"held_out={held_out!r} should be above 0 and below 1")


def checked(estimator: VMM | SingleCellVMM, X: Any, whole: bool) -> Any:
    """X, checked here because each fit sees only a part of it; ``whole``: whether ``refit`` will train on all of X."""
    if not isinstance(estimator, SingleCellVMM):
        names, X = finite.names(X), inputs.checked(X)
        finite.check_finite(check_array(X, allow_nd=True, ensure_all_finite=False), *names)
        return X
    estimator._check_parameters()
    counted = of_counts(estimator.likelihood, estimator.likelihood_options)
    totals = check_cells(CellBatches(X, estimator.layer), counted, training=whole)
    estimator._covariates(X, totals).check_sizes(X)
    return X


def with_categories(estimator: VMM | SingleCellVMM, X: Any) -> VMM | SingleCellVMM:
    """An estimator with the number of categories of X, as a part of the rows may lack one that others have."""
    options, likelihood = estimator.likelihood_options or {}, estimator.likelihood
    if isinstance(estimator, SingleCellVMM) or not isinstance(options, dict):  # the fit refuses other options
        return estimator
    cls = None if isinstance(likelihood, Likelihood) else likelihood_class(likelihood)
    if cls is None or cls.domain_options.__func__ is Likelihood.domain_options.__func__:
        return estimator
    x = torch.as_tensor(check_array(X, dtype=[np.float64, np.float32], allow_nd=True))
    return clone(estimator).set_params(likelihood_options=likelihood_options(likelihood, options, x))


def fit_part(model: VMM | SingleCellVMM, X: Any, rows: np.ndarray) -> None:
    """Fit a model to the rows of X at these positions, so that it knows the batches and genes of all of X."""
    part, whole = take_to_train(model, X, rows), {}
    if isinstance(model, SingleCellVMM):
        whole["part_of"] = X
        if not isinstance(model.init, str):
            model.set_params(init=[name for name in model.init if name in part.obs_names] or "random")
    model.fit(part, **whole)


def description(estimator: VMM | SingleCellVMM, X: Any, varied: Sequence[str]) -> dict:
    """Plain values that identify the fits of this estimator to X; ``varied`` are parameters that fits vary."""
    params = estimator.configuration()
    params = {name: value for name, value in params.items() if name not in (*_WITHOUT_EFFECT, *varied)}
    return {**params, **_fingerprint(estimator, X)}


def _fingerprint(estimator: VMM | SingleCellVMM, X: Any) -> dict:
    if not isinstance(estimator, SingleCellVMM):
        values = np.asarray(X)
        # The bytes of objects, as in a table of numbers and booleans, are addresses, which differ between processes.
        X = check_array(X, dtype=[np.float64, np.float32], allow_nd=True) if values.dtype == object else values
        return {"data": [*X.shape, zlib.crc32(np.ascontiguousarray(X).data)]}
    counts = CellBatches(X, estimator.layer)
    names = "\n".join([*counts.cell_names, *counts.gene_names])
    of_cells, of_genes = np.empty(counts.shape[0]), np.zeros(counts.shape[1])
    for start, block in counts.chunks():
        of_cells[start : start + block.shape[0]] = np.ravel(block.sum(1, dtype=np.float64))
        of_genes += np.ravel(block.sum(0, dtype=np.float64))
    return {
        "data": [*counts.shape, zlib.crc32(names.encode()), zlib.crc32(of_cells.data)],
        "covariates": zlib.crc32(estimator._covariates(X, of_cells).design(X, of_cells).numpy().data),
        # As float32, because the last digits of sums of fractions depend on the size of the blocks.
        "gene_totals": zlib.crc32(of_genes.astype(np.float32).data),
    }
