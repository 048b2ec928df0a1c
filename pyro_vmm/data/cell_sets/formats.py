"""Readers of the forms that cells are kept in: ``.h5ad``, ``.zarr``, 10x, ``.loom``, MuData."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pyro_vmm.data.cell_sets.files import quiet, read_h5ad
from pyro_vmm.data.cell_sets.h5ad import check_group
from pyro_vmm.data.reading import reading
from pyro_vmm.data.structure import check_members
from pyro_vmm.data.user_files import ending_of
from pyro_vmm.runtime.extras import require

if TYPE_CHECKING:
    from anndata import AnnData

#: What 10x calls the features that are genes; the others are antibodies, guides and peaks.
GENES = "Gene Expression"
MATRIX = ("matrix.mtx", "matrix.mtx.gz")


def read_cells(path: Path, modality: str | None = None, backed: bool = False) -> "AnnData":
    """The cells of a file or folder.

    Arguments:
        path: a file with one of the endings of ``READERS``, or a folder with ``matrix.mtx`` of 10x.
        modality: the modality of an ``.h5mu``; None for the only one.
        backed: leave ``X``, layers and ``raw`` in the store; for a ``.zarr`` alone.

    Raises:
        FileNotFoundError: there is no such file, or a file is missing in the folder.
        ValueError: it is damaged, or of another format.
        ImportError: the library that reads it is missing.
    """
    ending = ending_of(path, READERS)
    if modality is not None and ending != ".h5mu":
        raise ValueError(f"modality={modality!r} is for .h5mu files, not for {path}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path} (looked in {path.parent.absolute()})")
    if ending is None and not path.is_dir():
        raise ValueError(f"cannot read {path}: expected a file ending in {', '.join(READERS)}, or a folder of 10x")
    if ending not in (None, ".zarr") and not path.is_file():
        raise ValueError(f"{path} is a folder, expected a file")
    if backed and ending != ".zarr":
        raise ValueError(f"backed: {path} is read into memory, expected an .h5ad file or a .zarr store")
    if backed:
        return _read_zarr(path, backed)
    if ending == ".h5mu":
        return _read_h5mu(path, modality)
    return _read_folder(path) if ending is None else READERS[ending](path)


@contextmanager
def _whole(path: Path, form: str) -> Iterator[None]:
    """:func:`~pyro_vmm.data.reading.reading` without warnings of faults that are corrected here."""
    with quiet(), reading(path, form):
        yield


def _read_zarr(path: Path, backed: bool = False) -> "AnnData":
    zarr = require("zarr", f"Reading {path}", "cells")
    from anndata.io import read_zarr

    with _whole(path, "a Zarr store of AnnData"):
        store = zarr.open_group(path, mode="r")
        if store.attrs.get("encoding-type") == "MuData" or "obs" not in store:
            raise ValueError("it holds no AnnData: obs is missing, or it holds MuData")
        _check_chunks(store)
        adata = _in_store(store) if backed else read_zarr(path)
        check_members(adata)
    return adata


def _in_store(store: Any) -> "AnnData":
    """The cells of a store, whose ``X``, layers and counts of ``raw`` stay there."""
    from anndata import AnnData
    from anndata.io import read_elem, sparse_dataset

    def matrix(element: Any) -> Any:
        return sparse_dataset(element) if hasattr(element, "keys") else element

    tables = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")
    parts = {name: read_elem(store[name]) for name in tables if name in store}
    layers = {name: matrix(store["layers"][name]) for name in (store["layers"] if "layers" in store else ())}
    if hasattr(store.get("raw"), "keys"):  # an AnnData without raw may be stored with an empty array of that name
        raw = {name: read_elem(store["raw"][name]) for name in ("var", "varm") if name in store["raw"]}
        parts["raw"] = {"X": matrix(store["raw"]["X"]), **raw}
    return AnnData(matrix(store["X"]) if "X" in store else None, layers=layers, **parts)


def _check_chunks(store: Any) -> None:
    """Raise ``ValueError`` where a part of a sparse matrix is not in the store: Zarr reads zeros there.

    Zarr leaves out parts that are zero all over. Stored values and their columns have no such part.
    """
    places = ["X", "raw/X", *(f"layers/{name}" for name in (store["layers"] if "layers" in store else ()))]
    for place in places:
        group = store.get(place)
        if group is None or not str(group.attrs.get("encoding-type", "")).endswith("_matrix"):
            continue
        for name in ("data", "indices"):
            array = group[name]
            if array.shape[0] and min(group.attrs["shape"]) > 1 and array.nchunks_initialized < array.nchunks:
                raise ValueError(f"parts of {place}/{name} are missing in the store")


def _read_10x_h5(path: Path) -> "AnnData":
    scanpy = require("scanpy", f"Reading {path}", "cells")
    import h5py

    with _whole(path, "a 10x .h5 file"):
        with h5py.File(path, "r") as file:
            if "X" in file and "obs" in file:
                raise ValueError("it is AnnData's: let its name end in .h5ad")
        adata = scanpy.read_10x_h5(path, gex_only=False)
        check_members(adata)
    return _genes(path, adata)


def _read_folder(folder: Path) -> "AnnData":
    found = sorted(path for path in folder.iterdir() if path.name.endswith(MATRIX) and path.is_file())
    if not found:
        raise FileNotFoundError(f"the folder {folder} holds no matrix.mtx or matrix.mtx.gz")
    if len(found) > 1:
        raise ValueError(f"{folder} holds several matrices: {', '.join(p.name for p in found)}; name one of the files")
    return _read_mtx(found[0])


def _read_mtx(path: Path) -> "AnnData":
    """Features x cells in Matrix Market, with tables of both beside it.

    scanpy's reader knows two sets of names, all compressed or none; STARsolo and GEO have others.
    """
    from anndata import AnnData
    from scipy import sparse
    from scipy.io import mmread

    prefix = path.name[: path.name.lower().rindex("matrix.mtx")] if "matrix.mtx" in path.name.lower() else None
    if prefix is None:
        raise ValueError(f"cannot read {path}: expected a name that ends in matrix.mtx or matrix.mtx.gz")
    features = _table(path.parent, prefix, "features", "genes")
    barcodes = _table(path.parent, prefix, "barcodes")
    with _whole(path, "a Matrix Market file"):
        matrix = sparse.csr_matrix(mmread(path).T)
    if matrix.shape != (len(barcodes), len(features)):
        raise ValueError(
            f"{path} has {matrix.shape[1]} features and {matrix.shape[0]} cells, but the tables beside it have "
            f"{len(features)} and {len(barcodes)} rows"
        )
    columns = dict(zip(("gene_ids", "name", "feature_types"), (features[name] for name in features), strict=False))
    names = pd.Index(columns.pop("name", columns["gene_ids"]).to_numpy())
    with quiet():
        var = pd.DataFrame({name: column.to_numpy() for name, column in columns.items()}, index=names)
        adata = AnnData(matrix, obs=pd.DataFrame(index=pd.Index(barcodes[0].to_numpy())), var=var)
    return _genes(path, adata)


def _table(folder: Path, prefix: str, *names: str) -> pd.DataFrame:
    """The first of these tables that is there, as text, its columns 0, 1, 2, ..."""
    files = [f"{prefix}{name}.tsv{gz}" for name in names for gz in ("", ".gz")]
    path = next((folder / file for file in files if (folder / file).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"the folder {folder} holds none of {', '.join(files)}")
    with reading(path, "a table of 10x"):
        # Neither quotes nor a gene called NA mean anything here.
        return pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=3)


def _genes(path: Path, adata: "AnnData") -> "AnnData":
    """The features that are genes; all, where none is called so."""
    if "feature_types" not in adata.var:
        return adata
    genes = (adata.var["feature_types"] == GENES).to_numpy()
    if genes.all() or not genes.any():
        return adata
    others = ", ".join(sorted(set(adata.var["feature_types"][~genes].astype(str))))
    warnings.warn(
        f"{path}: left out {(~genes).sum()} of {len(genes)} features, which are no genes: {others}", stacklevel=5
    )
    with quiet():
        return adata[:, genes].copy()


def _read_loom(path: Path) -> "AnnData":
    require("loompy", f"Reading {path}", "loom")
    from anndata.io import read_loom

    with _whole(path, "a loom file"):
        adata = read_loom(path, X_name="")
        check_members(adata)
    return adata


def _read_h5mu(path: Path, modality: str | None = None) -> "AnnData":
    """A modality of MuData, which is an AnnData in a group, with the columns that all modalities share in ``obs``."""
    import h5py
    from anndata.io import read_elem

    with _whole(path, "an h5mu file"), h5py.File(path, "r") as file:
        names = list(file["mod"])
    if modality is None and len(names) > 1:
        raise ValueError(f"{path} holds several modalities: name one with modality (--modality): {', '.join(names)}")
    if modality is None and names:
        modality = names[0]
    if modality not in names:
        raise ValueError(f"modality={modality!r} is not in {path}, which holds {', '.join(names) or 'none'}")
    with _whole(path, "an h5mu file"), h5py.File(path, "r") as file:
        check_group(file["mod"][modality])
        adata = read_elem(file["mod"][modality])
        shared = read_elem(file["obs"])
        check_members(adata)
    new = [name for name in shared.columns if name not in adata.obs and ":" not in str(name)]
    if new and shared.index.is_unique:
        adata.obs = adata.obs.join(shared[new])
    return adata


#: By ending; a ``.zarr`` is a folder.
READERS: dict[str, Callable[[Path], "AnnData"]] = {
    ".h5ad": read_h5ad,
    ".zarr": _read_zarr,
    ".h5": _read_10x_h5,
    ".h5mu": _read_h5mu,
    ".loom": _read_loom,
    ".mtx": _read_mtx,
    ".mtx.gz": _read_mtx,
}
