"""Tables of clusters by batch and by type, in files and on the terminal."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from pyro_vmm.report import tables

#: The numbers of clusters and of batch columns in the closing table.
CLUSTERS_SHOWN, BATCHES_SHOWN = 20, 8
# The table numbers the batches if their names together are longer than this.
NAMES_WIDTH = 40
# A cluster is almost of one batch if the others have less than this share of the cells expected from their sizes...
FEW = 0.25
# ... and at least so many cells are expected: if fewer are, the others may be absent by chance.
ENOUGH = 5


def cross_table(clusters: np.ndarray, groups: pd.Categorical) -> pd.DataFrame:
    """Numbers of cells, clusters x groups, without empty ones; cells without a group count as "missing"."""
    if groups.isna().any():
        groups = groups if "missing" in groups.categories else groups.add_categories("missing")
        groups = pd.Categorical(groups).fillna("missing")
    index, positions = np.unique(clusters, return_inverse=True)
    counts = np.zeros((len(index), len(groups.categories)), int)
    np.add.at(counts, (positions, groups.codes), 1)
    table = pd.DataFrame(counts, pd.Index(index, name="cluster"), list(groups.categories))
    return table.loc[:, table.any()]


def single_batch_clusters(counts: pd.DataFrame) -> dict:
    """The clusters that are almost of a single batch among several, and that batch.

    Arguments:
        counts: numbers of cells, clusters x batches.
    """
    totals, found = counts.sum() / counts.to_numpy().sum(), {}
    for cluster, row in counts.iterrows():
        batch = row.idxmax()
        due = row.sum() * (1 - totals[batch])
        if due >= ENOUGH and row.sum() - row[batch] < FEW * due:
            found[cluster] = batch
    return found


def batch_line(counts: pd.DataFrame) -> str:
    """How many batches there are, and the cells of each, of the counts of clusters x batches."""
    numbered = _numbered(counts)
    texts = [f"{f'[{i}] ' if numbered else ''}{name} {n}" for i, (name, n) in enumerate(counts.sum().items(), 1)]
    return f"{len(texts)}: {tables.abridged(texts, BATCHES_SHOWN, ', ')} cells"


def cluster_table(
    by_batch: pd.DataFrame, by_type: pd.DataFrame | None, label_key: str | None, marked: Mapping[int, str]
) -> str:
    """A line for each cluster: its size, its shares of the batches, its most frequent type, a mark.

    Arguments:
        by_batch: numbers of cells, clusters x batches.
        by_type: the same of known types, or None.
        label_key: the column that holds the types.
        marked: the clusters that are almost of a single batch, and that batch.
    """
    sizes = by_batch.sum(1)
    columns = [["cluster", *map(str, sizes.index)], ["cells", *map(str, sizes)]]
    columns.append(["share", *(f"{share:.1%}" for share in sizes / sizes.sum())])
    columns += _batch_columns(by_batch)
    texts = [len(columns)]
    if by_type is not None:
        shares = by_type.div(sizes, axis=0)
        columns.append([str(label_key), *(f"{row.idxmax()} {row.max():.0%}" for _, row in shares.iterrows())])
        texts.append(len(columns))
    columns.append(["", *(f"almost only {marked[k]}" if k in marked else "" for k in sizes.index)])
    lines = [*zip(*columns, strict=True)]
    text = tables.columns(lines[: CLUSTERS_SHOWN + 1], texts)
    if len(sizes) > CLUSTERS_SHOWN:
        text += f"\nand {len(sizes) - CLUSTERS_SHOWN} more"
    return text + _note_on_marks(by_batch, marked)


def _note_on_marks(by_batch: pd.DataFrame, marked: Mapping[int, str]) -> str:
    if not marked:
        return ""
    return (
        f"\n{len(marked)} of {len(by_batch)} clusters almost only of one batch: "
        "a cell type that the others lack, or an effect of the batch"
    )


def _numbered(counts: pd.DataFrame) -> bool:
    return counts.shape[1] <= BATCHES_SHOWN and sum(len(str(name)) for name in counts) > NAMES_WIDTH


def _batch_columns(counts: pd.DataFrame) -> list[list[str]]:
    """Columns of the cluster table: the shares of all batches, or the largest one if there are many batches."""
    if counts.shape[1] == 1:
        return []
    shares = counts.div(counts.sum(1), axis=0)
    if counts.shape[1] > BATCHES_SHOWN:
        largest = [f"{row.idxmax()} {row.max():.0%}" for _, row in shares.iterrows()]
        present = [f"{n} of {counts.shape[1]}" for n in (counts > 0).sum(1)]
        return [["batches", *present], ["largest", *largest]]
    names = [f"[{i + 1}]" if _numbered(counts) else str(name) for i, name in enumerate(counts)]
    return [[name, *(f"{share:.0%}" for share in shares[column])] for name, column in zip(names, counts, strict=True)]
