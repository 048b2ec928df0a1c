"""What the arrays of a data set are."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to cluster, with what is known about them.

    Arguments:
        x: the data, shape (N, *event_shape): float32 for the named sets, a file's own real dtype.
        labels: the known class of each row, shape (N,), a missing value where it is not known; or None. Never used in
            training.
        name: the data set's name, or the file's without its ending.
        n_train: the first ``n_train`` rows are the official training set; None where there is none.
        row_names: a name for each row, shape (N,), or None.
        column_names: the names of a table's features, (G,), or None.
        sample_weight: how often each row counts beside the others, shape (N,), or None.
    """

    x: np.ndarray
    labels: np.ndarray | None
    name: str
    n_train: int | None = None
    row_names: np.ndarray | None = None
    column_names: list[str] | None = None
    sample_weight: np.ndarray | None = None
