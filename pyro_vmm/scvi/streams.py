"""Cells of a data module: they come in minibatches, in an order of their own, and have no positions."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse

# Where scvi-tools is not installed, pyright takes this folder for it.
from scvi import REGISTRY_KEYS  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from pyro_vmm.scvi.cells import Layout

Minibatch = Mapping[str, Any]


def training_cells(datamodule: Any) -> Generator[Minibatch, None, None]:
    """The minibatches of an epoch of a data module, as its model gets them: dicts of tensors (M, ...)."""
    datamodule.prepare_data()
    datamodule.setup("fit")
    for batch in datamodule.train_dataloader():
        batch = datamodule.on_before_batch_transfer(batch, 0)
        yield datamodule.on_after_batch_transfer(batch, 0)


def batch_names(registry: Mapping | None, datamodule: Any = None) -> list[str]:
    """The names of the batches, as a model's registry has them; none if there is no registry, or no batches.

    scvi-tools' ``TileDBDataModule`` numbers the sorted names, and its registry has them in another order.
    """
    if hasattr(datamodule, "batch_encoder"):
        return [str(name) for name in datamodule.batch_encoder.classes_]
    fields = {} if registry is None else registry["field_registries"]
    names = fields.get(REGISTRY_KEYS.BATCH_KEY, {}).get("state_registry", {}).get("categorical_mapping")
    if isinstance(names, Mapping):  # the number of each name
        names = sorted(names, key=names.__getitem__)
    return [] if names is None else [str(name) for name in names]


class Sample:
    """At most so many rows of a stream, drawn at random without replacement; also :class:`~pyro_vmm.runtime.rows.Rows`.

    Each row gets a random number, and those with the smallest ones remain. So the length of the stream need not be
    known, and rows are not moved. They are kept sparse, in the order of the stream.

    Arguments:
        most: the largest number of rows.
        seed: of the draw.
        device: of the rows that are read.
    """

    def __init__(self, most: int, seed: int, device: torch.device | str = "cpu"):
        self.most, self.device = most, device
        self._random = np.random.default_rng(seed)
        self._bound = np.inf  # rows with larger numbers can't be in the sample
        self._numbers = np.empty(0)
        self._rows: list[sparse.csr_matrix] = []

    def add(self, rows: Tensor) -> None:
        """Rows (M, W) of the stream pass."""
        numbers = self._random.random(len(rows))
        kept = numbers < self._bound
        if not kept.any():  # as of most minibatches of a long stream
            return
        self._rows.append(sparse.csr_matrix(rows.cpu().numpy()[kept]))
        self._numbers = np.concatenate([self._numbers, numbers[kept]])
        if len(self._numbers) > 2 * self.most:
            self._trim()

    def _trim(self) -> None:
        rows = sparse.vstack(self._rows, format="csr")
        if len(self._numbers) > self.most:
            chosen = np.sort(np.argpartition(self._numbers, self.most - 1)[: self.most])
            rows, self._numbers = rows[chosen], self._numbers[chosen]
            self._bound = self._numbers.max()
        self._rows = [rows]

    def __len__(self) -> int:
        return min(len(self._numbers), self.most)

    def __getitem__(self, index: Tensor) -> Tensor:
        if len(self._rows) > 1 or len(self._numbers) > self.most:
            self._trim()
        return torch.as_tensor(self._rows[0][index.cpu().numpy()].toarray()).to(self.device)


class Noted:
    """A loader of minibatches that notes the batch of each cell, and shows the cells to a sample, as they pass.

    Arguments:
        loader: of dicts of tensors (M, ...).
        layout: the columns of a cell.
        sample: what the cells are shown to, or None.
    """

    def __init__(self, loader: Iterable[Minibatch], layout: Layout, sample: Sample | None = None):
        self.loader, self.layout, self.sample = loader, layout, sample
        self._batches: list[np.ndarray] = []

    def __iter__(self) -> Iterator[Minibatch]:
        self._batches = []
        for tensors in self.loader:
            if self.sample is not None:
                self.sample.add(self.layout.pack(tensors))
            batch, n = tensors.get(REGISTRY_KEYS.BATCH_KEY), len(tensors[self.layout.fields[0].key])
            self._batches.append(np.zeros(n) if batch is None else batch.cpu().numpy().ravel())
            yield tensors

    @property
    def batch(self) -> np.ndarray:
        """The batch of each cell that passed, (N,)."""
        return np.concatenate(self._batches or [np.empty(0)]).astype(int)
