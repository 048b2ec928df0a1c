"""The paper's single-cell data sets, as the paper prepares them, and any ``.h5ad`` file, as it is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from pyro_vmm.data.cell_sets.files import (
    CORTEX_FILES,
    LUNG_URL,
    PBMC_FILES,
    SPLIT_SEQ_FILES,
    download,
    find,
    folders,
    quiet,
    read_cortex,
    read_h5ad,
    read_split_seq,
    where_to_get,
)
from pyro_vmm.data.cell_sets.formats import READERS, read_cells
from pyro_vmm.data.cell_sets.genes import MIN_COUNTS, categorical, enough, most_variable, one_batch, whole_counts
from pyro_vmm.data.cells import counts_matrix
from pyro_vmm.data.root import data_root
from pyro_vmm.data.user_files import ending_of
from pyro_vmm.runtime.extras import require

if TYPE_CHECKING:
    from anndata import AnnData

#: What the authors' code chooses for each data set, as parameters of the single-cell estimator.
CELL_PRESETS: dict[str, dict] = {
    "cortex": {"hidden": (128,), "latent_dim": 10, "likelihood": "zinb", "learning_rate": 4e-4},
    "pbmc": {"hidden": (128,), "latent_dim": 10, "likelihood": "zinb", "learning_rate": 4e-4},
    "lung_atlas": {"hidden": (128, 128), "latent_dim": 30, "likelihood": "nb", "learning_rate": 1e-3},
    "split_seq": {"hidden": (128, 128), "latent_dim": 30, "likelihood": "zinb", "learning_rate": 1e-3},
}

# What the bundled pbmc68k was scaled to, and the error of a value with three decimals, in float32.
PBMC68K_TARGET, PBMC68K_ERROR = 1e4, 5.01e-4


def load_cells(
    name_or_path: str | Path,
    data_dir: str | Path | None = None,
    backed: bool = False,
    modality: str | None = None,
    make_unique: bool = False,
) -> "AnnData":
    """The data set of that name, or a user's cells, unchanged.

    - ``.h5ad``, and ``.zarr`` that AnnData wrote.
    - ``.h5`` of 10x, and folders with ``matrix.mtx``, ``features.tsv`` or ``genes.tsv``, and ``barcodes.tsv``, each
      with or without ``.gz``, or the path of such a matrix, whose name may have a prefix that the others share.
      Features other than genes are left out, with a warning.
    - ``.loom``, by loompy.
    - ``.h5mu``: a modality of MuData.

    Arguments:
        name_or_path: a key of ``CELL_SETS``, the path of a file or folder, or the name of an ``.h5ad`` file in
            the data folder, with or without its ending.
        data_dir: the data folder; files are looked for in its ``cells`` and in itself. Defaults to
            ``$PYRO_VMM_DATA``, then to a cache folder in the user's home. Downloads go to its ``cells``.
        backed: leave ``X`` in an ``.h5ad``, as ``anndata.read_h5ad(path, backed="r")`` does, or ``X`` and layers in a
            ``.zarr``; for no other form.
        modality: which modality of an ``.h5mu`` to read; None for the only one.
        make_unique: whether to append -1, -2, ... to names of genes that come again.

    Raises:
        ValueError: The file is damaged or of another format, or an option is not for it.
        FileNotFoundError: There is no such file.
        ImportError: The library that reads it is missing.
    """
    adata = _load(name_or_path, data_dir, backed, modality)
    if make_unique:
        adata.var_names_make_unique()
    return adata


def _load(name_or_path: str | Path, data_dir: str | Path | None, backed: bool, modality: str | None) -> "AnnData":
    name = str(name_or_path)
    if name in CELL_SETS:
        if backed:
            raise ValueError(f"backed: {name} is prepared in memory, expected an .h5ad file or a .zarr store")
        _check_no_modality(modality, name)
        return CELL_SETS[name](data_dir)
    path, root = Path(name).expanduser(), data_root(data_dir)
    is_h5ad = path.suffix.lower() == ".h5ad"
    if is_h5ad and path.is_file():
        _check_no_modality(modality, name)
        return read_h5ad(path, backed)
    found = find(root, name if is_h5ad else f"{name}.h5ad")
    if found is not None and not path.is_file():
        _check_no_modality(modality, name)
        return read_h5ad(found, backed)
    if path.exists() or (not is_h5ad and ending_of(path, READERS) is not None):
        return read_cells(path, modality, backed)
    if is_h5ad:
        raise FileNotFoundError(
            f"there is no file {path} (looked in {path.parent.absolute()}, {root / 'cells'}, {root})"
        )
    stored = sorted({file.stem for folder in folders(root) for file in folder.glob("*.h5ad")} - set(CELL_SETS))
    raise ValueError(
        f"no data set or file is called {name!r}; expected one of {', '.join(CELL_SETS)}, a file ending in "
        f"{', '.join(READERS)}, a folder with matrix.mtx, or one of those in {root}: {', '.join(stored) or 'none'}"
    )


def _check_no_modality(modality: str | None, name: str) -> None:
    if modality is not None:
        raise ValueError(f"modality={modality!r} is for .h5mu files, not for {name}")


def load_cortex(data_dir: str | Path | None = None) -> "AnnData":
    """Mouse cortex (Zeisel et al., 2015): 3005 cells of 7 types, 558 variable genes, one batch.

    Arguments:
        data_dir: folder with ``cortex.h5ad``, or the published ``expression_mRNA_17-Aug-2014.txt``, which scvi-tools
            keeps as ``expression.bin``; see ``load_cells``. Where neither is there, scvi-tools downloads it.
    """
    root = data_root(data_dir)
    path, adata = _stored("cortex", root)
    if adata is None:
        path = find(root, *CORTEX_FILES)
        adata = read_cortex(path) if path is not None else download("cortex", root, _fetch_cortex)
    return _prepared(adata, path or "cortex", batch=None, n_top_genes=558)


def load_pbmc(data_dir: str | Path | None = None) -> "AnnData":
    """Blood cells of a healthy donor in two batches, 4k and 8k (10x Genomics; labels and genes of Lopez et al., 2018).

    Arguments:
        data_dir: folder with ``pbmc.h5ad``, or with the files of ``scvi.data.pbmc_dataset``, which scvi-tools reads
            and, where they are missing, downloads; see ``load_cells``.
    """
    root = data_root(data_dir)
    path, adata = _stored("pbmc", root)
    if adata is None:
        adata = download("pbmc", root, _fetch_pbmc)
    return _prepared(adata, path or "pbmc", cell_type=("cell_type", "str_labels"))


def load_lung_atlas(data_dir: str | Path | None = None) -> "AnnData":
    """Human lung in 16 batches, of scIB's integration tasks (Luecken et al., 2022): 2000 variable genes.

    The file holds log-normalised values in ``X`` and counts in ``layers["counts"]``. Those of its 10x cells were
    corrected for ambient RNA, which leaves fractions: they are rounded, with a warning. (The authors' code takes
    ``X``, that is, log-normalised values for counts.)

    Arguments:
        data_dir: folder with ``lung_atlas.h5ad``, which is downloaded if it is missing; see ``load_cells``.
    """
    root = data_root(data_dir)
    path, adata = _stored("lung_atlas", root)
    if adata is None:
        adata = download("lung_atlas", root, _fetch_lung_atlas)
    return _prepared(adata, path or "lung_atlas", n_top_genes=2000, rounding=True)


def load_split_seq(data_dir: str | Path | None = None) -> "AnnData":
    """The SPLiT-seq cells of the paper's authors; batch is the column ``polydT``, type ``cellchat_clusters``.

    Arguments:
        data_dir: folder with ``split_seq.h5ad``, or with ``split-seq/cells_meta.tsv.gz`` (a row for each cell) and
            ``split-seq/counts_small.npz`` (SciPy's sparse cells by genes); see ``load_cells``.
    """
    root = data_root(data_dir)
    path, adata = _stored("split_seq", root)
    if adata is None:
        path, counts = (find(root, file) for file in SPLIT_SEQ_FILES)
        if path is None or counts is None:
            raise FileNotFoundError(where_to_get("split_seq", root, ""))
        adata = read_split_seq(path, counts)
    assert path is not None, "the file that the cells are from"
    return _prepared(adata, path, batch=("batch", "polydT"), cell_type=("cell_type", "cellchat_clusters"))


def load_pbmc68k() -> "AnnData":
    """The 700 blood cells x 765 genes bundled with scanpy, a subset of 68k PBMCs (Zheng et al., 2017); one batch.

    scanpy's ``pbmc68k_reduced`` keeps ``log1p(1e4 * count / n_counts)`` in ``raw``, rounded to three decimals, where
    ``obs["n_counts"]`` is the cell's total over all the genes measured; those that were kept hold a fifth of it. That
    is undone exactly: the nearest whole count gives back every value to within its rounding, the next one would be
    off by 0.0038 or more. Every cell's least positive count is 1. Later versions of scanpy bring a layer of counts,
    which is then taken.
    """
    scanpy = require("scanpy", "Loading pbmc68k", "cells")
    with quiet():
        adata = scanpy.datasets.pbmc68k_reduced()
    if "counts" not in adata.layers:
        if adata.raw is None:
            raise ValueError(
                "scanpy's pbmc68k_reduced has neither a layer counts nor raw: take another version of scanpy"
            )
        counts = _undo_log_normalisation(sparse.csr_matrix(adata.raw.X), adata.obs["n_counts"].to_numpy(np.float64))
        adata.layers["counts"] = counts
    return _prepared(adata, "pbmc68k", batch=None, cell_type=("bulk_labels",))


@dataclass(frozen=True)
class CellSet:
    """A named set of cells, with their types in ``obs["cell_type"]``; called with a data folder, it loads them.

    Arguments:
        load: loads the cells from a data folder; given None, from the usual folder.
        several_batches: whether ``obs["batch"]`` has more than one.
    """

    load: Callable[[str | Path | None], "AnnData"]
    several_batches: bool = True

    def __call__(self, data_dir: str | Path | None = None) -> "AnnData":
        return self.load(data_dir)


CELL_SETS = {
    "cortex": CellSet(load_cortex, several_batches=False),
    "pbmc": CellSet(load_pbmc),
    "lung_atlas": CellSet(load_lung_atlas),
    "split_seq": CellSet(load_split_seq),
    "pbmc68k": CellSet(lambda data_dir: load_pbmc68k(), several_batches=False),
}


def _stored(name: str, root: Path) -> tuple[Path, "AnnData"] | tuple[None, None]:
    path = find(root, f"{name}.h5ad")
    if path is None:
        return None, None
    with quiet():
        return path, read_h5ad(path)


def _fetch_cortex(root: Path) -> "AnnData":
    return require("scvi", "Downloading cells", "scvi").data.cortex(save_path=str(root / "cells"))


def _fetch_pbmc(root: Path) -> "AnnData":
    scvi = require("scvi", "Downloading cells", "scvi")
    # It reads what is there and downloads the rest.
    first = find(root, PBMC_FILES[0])
    return scvi.data.pbmc_dataset(save_path=str(first.parent if first else root / "cells"))


def _fetch_lung_atlas(root: Path) -> "AnnData":
    return require("scanpy", "Downloading cells", "cells").read(root / "cells" / "lung_atlas.h5ad", backup_url=LUNG_URL)


def _prepared(
    adata: "AnnData",
    place: str | Path,
    batch: tuple[str, ...] | None = ("batch",),
    cell_type: tuple[str, ...] = ("cell_type",),
    n_top_genes: int | None = None,
    rounding: bool = False,
) -> "AnnData":
    """The paper's preparation: selected genes, then those with 3 counts or more and the cells with 3 or more of them.

    Arguments:
        adata: as read; its layer ``counts`` is taken before its ``X``.
        place: where it comes from, for messages.
        batch: the columns that can hold the batches, the first of them that is there is taken; None for one batch.
        cell_type: the columns that can hold the cell types.
        n_top_genes: how many variable genes to select; None for all.
        rounding: whether to round fractions in the layer ``counts`` rather than refuse them.
    """
    from anndata import AnnData

    layer = "counts" if "counts" in adata.layers else None
    counts = whole_counts(counts_matrix(adata, layer), f"{place}: {layer or 'X'}", rounding and layer == "counts")
    batches = one_batch(adata) if batch is None else categorical(adata, _first(adata, batch), f"{place}: batch")
    types = categorical(adata, _first(adata, cell_type), f"{place}: cell_type")
    top = np.ones(adata.n_vars, dtype=bool) if n_top_genes is None else most_variable(counts, batches, n_top_genes)
    cells, genes = enough(counts[:, top], MIN_COUNTS)
    genes = np.flatnonzero(top)[genes]
    if not (cells.any() and len(genes)):
        raise ValueError(f"{place}: no cell has {MIN_COUNTS} counts in genes with as many")
    obs = adata.obs.drop(columns=[*(batch or ()), *cell_type], errors="ignore")
    obs = obs.assign(batch=batches, cell_type=types)
    with quiet():
        result = AnnData(counts[cells][:, genes], obs=obs[cells], var=adata.var.iloc[genes].copy())
        result.obs_names_make_unique()
        result.var_names_make_unique()
    for column in ("batch", "cell_type"):
        result.obs[column] = result.obs[column].cat.remove_unused_categories()
    return result


def _undo_log_normalisation(values: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    """The counts of which these are ``log1p(1e4 * count / total)``, rounded to three decimals; ``totals`` is (N,)."""
    scale = PBMC68K_TARGET / np.repeat(totals, np.diff(values.indptr))
    counts = np.rint(np.expm1(values.data.astype(np.float64)) / scale)
    error = np.abs(np.log1p(counts * scale) - values.data)
    if not (error <= PBMC68K_ERROR).all():
        worst = np.nanargmax(error)
        raise ValueError(
            f"scanpy's pbmc68k_reduced is not what it was: its value {values.data[worst]:.6g} is off that of the count "
            f"{counts[worst]:g} by {error[worst]:.2g}, expected at most {PBMC68K_ERROR}"
        )
    return sparse.csr_matrix((counts, values.indices, values.indptr), values.shape)


def _first(adata: "AnnData", columns: tuple[str, ...]) -> str:
    return next((column for column in columns if column in adata.obs), columns[0])
