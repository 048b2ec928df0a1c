"""Where the single-cell data sets lie, how their files are read, and what is said when they are missing."""

import csv
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from scipy import sparse

from pyro_vmm.data.cell_sets.genes import numbered
from pyro_vmm.data.cell_sets.h5ad import check_file
from pyro_vmm.data.structure import check_members
from pyro_vmm.runtime.files import reason

if TYPE_CHECKING:
    from anndata import AnnData

CORTEX_URL = "https://storage.googleapis.com/linnarsson-lab-www-blobs/blobs/cortex/expression_mRNA_17-Aug-2014.txt"
# As published, and as scvi-tools names the same file.
CORTEX_FILES = ("expression_mRNA_17-Aug-2014.txt", "expression.bin")
CORTEX_HEAD = 11
PBMC_FILES = (
    "pbmc_metadata.pickle",
    "gene_info_pbmc.csv",
    "pbmc4k/filtered_gene_bc_matrices.tar.gz",
    "pbmc8k/filtered_gene_bc_matrices.tar.gz",
)
LUNG_URL = "https://figshare.com/ndownloader/files/24539942"
SPLIT_SEQ_FILES = ("split-seq/cells_meta.tsv.gz", "split-seq/counts_small.npz")

#: For each set the files to put into the data folder, where they come from, and a hint.
ORIGINS: dict[str, tuple[str, str, str]] = {
    "cortex": (
        CORTEX_FILES[0],
        CORTEX_URL,
        ', or install scvi-tools, which downloads it: pip install -e ".[bench]"',
    ),
    "pbmc": (
        ", ".join(PBMC_FILES),
        "what scvi.data.pbmc_dataset(save_path=...) downloads",
        '. scvi-tools reads those files, and downloads the missing ones: pip install -e ".[bench]"',
    ),
    "lung_atlas": ("lung_atlas.h5ad", f"{LUNG_URL}, see https://doi.org/10.6084/m9.figshare.12420968", ""),
    "split_seq": (
        " and ".join(SPLIT_SEQ_FILES),
        "the paper's authors, https://github.com/astirn/VampPrior-Mixture-Model; there is no download",
        "",
    ),
}


def folders(root: Path) -> tuple[Path, Path]:
    """Where files are looked for, in this order."""
    return root / "cells", root


def find(root: Path, *files: str) -> Path | None:
    """The first of these files that is there."""
    return next((path for file in files for folder in folders(root) if (path := folder / file).is_file()), None)


def read_h5ad(path: Path, backed: bool = False) -> "AnnData":
    """The file as it is, ``backed`` for ``X`` to stay in it; ``ValueError`` if it is damaged or of another format."""
    import anndata

    try:
        check_file(path)
        adata = anndata.read_h5ad(path, backed="r" if backed else None)
        check_members(adata)
    except Exception as error:  # h5py and AnnData raise a dozen types, by where the damage is
        problem = f"it is damaged or of another format ({reason(error)})"
        raise ValueError(f"cannot read {path} as an h5ad file: {problem}") from error
    return adata


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of faults that are corrected here, or that the published files have."""
    from anndata import OldFormatWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OldFormatWarning)
        warnings.filterwarnings("ignore", "(Observation|Variable) names are not unique|Suffix used", UserWarning)
        yield


def read_cortex(path: Path) -> "AnnData":
    """The published table: lines of cells' annotations, a separator, then a line for each gene."""
    from anndata import AnnData

    try:
        with path.open(newline="", encoding="utf-8") as file:
            head = list(islice(csv.reader(file, delimiter="\t"), CORTEX_HEAD))
        annotations = {row[1]: row[2:] for row in head if len(row) > 2}
        names, types = annotations["cell_id"], annotations["level1class"]
        # A gene's name, its cluster, its counts.
        table = pd.read_csv(path, sep="\t", skiprows=CORTEX_HEAD, header=None, index_col=0, keep_default_na=False)
        counts = sparse.csr_matrix(table.iloc[:, 1:].to_numpy().T)
        obs = pd.DataFrame({"cell_type": types}, index=names)
        with quiet():
            return AnnData(counts, obs=obs, var=pd.DataFrame(index=table.index.astype(str).rename(None)))
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"cannot read {path} as the table of {CORTEX_URL}: it is damaged or of another format ({error})"
        ) from error


def read_split_seq(meta: Path, counts: Path) -> "AnnData":
    """The authors' two files: a tab-separated row for each cell, and SciPy's sparse cells by genes."""
    from anndata import AnnData

    path = meta
    try:
        obs = pd.read_csv(meta, sep="\t")
        path = counts
        with counts.open("rb") as file:
            matrix = sparse.csr_matrix(sparse.load_npz(file))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"cannot read {path}: it is damaged or of another format ({error})") from error
    if matrix.shape[0] != len(obs):
        raise ValueError(f"{counts} has shape {matrix.shape}, expected {len(obs)} cells, as many as {meta} has rows")
    var = pd.DataFrame(index=numbered("gene", matrix.shape[1]))
    return AnnData(matrix, obs=obs.set_axis(numbered("cell", len(obs))), var=var)


def download(name: str, root: Path, fetch: Callable[[Path], "AnnData"]) -> "AnnData":
    """What ``fetch`` gets into the data folder, or says what to put where."""
    try:
        with quiet():
            return fetch(root)
    # scvi-tools fails with RuntimeError where its torchvision does not match torch.
    except (ImportError, RuntimeError, OSError, HTTPException) as error:
        problem = f" and could not be downloaded ({type(error).__name__}: {error})"
        raise FileNotFoundError(where_to_get(name, root, problem)) from error


def where_to_get(name: str, root: Path, problem: str) -> str:
    """What to do about a data set that is missing."""
    files, origin, hint = ORIGINS[name]
    own = f", or {name}.h5ad (raw counts, the columns batch and cell_type)" if files != f"{name}.h5ad" else ""
    return (
        f"{name} is not in {root / 'cells'} or {root}{problem}. Either put {files} there (from {origin}){own}, or name "
        f"another folder with data_dir or $PYRO_VMM_DATA{hint}"
    )
