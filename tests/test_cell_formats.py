"""Cells in the forms in which users have them, whole and damaged; the answer is the AnnData that was written."""

import gzip
import re
import shutil
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.io import mmwrite

from pyro_vmm.cli.options import check, kind_of
from pyro_vmm.data import load_cells
from pyro_vmm.data.cells import CellBatches, require_anndata, stays_outside

N, G = 40, 7
NAMES = [f"gene{g}" for g in range(G)]


def cells(seed: int = 0) -> ad.AnnData:
    counts = np.random.default_rng(seed).poisson(2.0, (N, G)).astype(np.float32)
    obs = pd.DataFrame({"batch": pd.Categorical(["a", "b"] * (N // 2))}, index=[f"cell{i}" for i in range(N)])
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=NAMES))


def same(found: ad.AnnData, expected: ad.AnnData) -> None:
    np.testing.assert_array_equal(found.to_df().to_numpy(), expected.to_df().to_numpy())
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    assert found.var_names.tolist() == expected.var_names.tolist()


def write_text(path, text: str) -> None:
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write(text)


def write_mtx(folder, adata, matrix="matrix.mtx", features="features.tsv", barcodes="barcodes.tsv", types=None):
    """As Cell Ranger does: features x cells, and tables without a header."""
    folder.mkdir(exist_ok=True)
    plain = folder / matrix.removesuffix(".gz")
    mmwrite(plain, sparse.coo_matrix(adata.X.T.astype(int)))
    if matrix.endswith(".gz"):
        write_text(folder / matrix, plain.read_text())
        plain.unlink()
    types = types or ["Gene Expression"] * adata.n_vars
    rows = [
        f"ENSG{g}\t{name}" + ("" if "genes" in features else f"\t{types[g]}") for g, name in enumerate(adata.var_names)
    ]
    write_text(folder / features, "\n".join(rows) + "\n")
    write_text(folder / barcodes, "\n".join(adata.obs_names) + "\n")
    return folder


def write_10x_h5(path, adata, types=None):
    """The layout that 10x documents: cells are the columns of a CSC matrix."""
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        counts = sparse.csr_matrix(adata.X)
        matrix["data"], matrix["indices"] = counts.data.astype(np.int32), counts.indices.astype(np.int64)
        matrix["indptr"], matrix["shape"] = counts.indptr.astype(np.int64), np.array([adata.n_vars, adata.n_obs])
        matrix["barcodes"] = np.array(adata.obs_names, "S")
        features = matrix.create_group("features")
        features["id"] = np.array([f"ENSG{g}" for g in range(adata.n_vars)], "S")
        features["name"] = np.array(adata.var_names, "S")
        features["feature_type"] = np.array(types or ["Gene Expression"] * adata.n_vars, "S")
        features["genome"] = np.array(["GRCh38"] * adata.n_vars, "S")
    return path


def write_h5mu(path, adata):
    """As mudata writes: an AnnData for each modality, and what they share."""
    other = ad.AnnData(np.ones((N, 2), np.float32), obs=pd.DataFrame(index=adata.obs_names))
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"] = "MuData"
        file.create_group("mod")
        ad.io.write_elem(file["mod"], "rna", adata)
        ad.io.write_elem(file["mod"], "prot", other)
        shared = pd.DataFrame({"donor": ["x"] * N, "rna:batch": ["y"] * N}, index=adata.obs_names[::-1])
        shared["number"] = np.arange(N)
        ad.io.write_elem(file, "obs", shared)
    return path


def write_zarr(path, adata, version):
    """In this version of Zarr, without the warnings of libraries that it is old, or new."""
    with warnings.catch_warnings(), ad.settings.override(zarr_write_format=version):
        warnings.simplefilter("ignore")
        adata.write_zarr(path)


# --- whole ---


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(tmp_path, version):
    adata = cells()
    write_zarr(tmp_path / "cells.zarr", adata, version)
    found = load_cells(tmp_path / "cells.zarr")
    same(found, adata)
    assert found.obs["batch"].tolist() == adata.obs["batch"].tolist()


def test_10x_h5(tmp_path):
    same(load_cells(write_10x_h5(tmp_path / "cells.h5", cells())), cells())


@pytest.mark.parametrize(
    ("matrix", "features", "barcodes"),
    [
        ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"),
        ("matrix.mtx", "genes.tsv", "barcodes.tsv"),
        ("matrix.mtx", "features.tsv", "barcodes.tsv.gz"),
        ("GSM1_matrix.mtx.gz", "GSM1_genes.tsv.gz", "GSM1_barcodes.tsv"),
    ],
)
def test_folders_of_matrix_market(tmp_path, matrix, features, barcodes):
    folder = write_mtx(tmp_path / "sample", cells(), matrix, features, barcodes)
    for path in (folder, folder / matrix):
        found = load_cells(path)
        same(found, cells())
        assert found.var["gene_ids"].tolist() == [f"ENSG{g}" for g in range(G)]


def test_a_gene_called_na_or_with_a_quote_keeps_its_name(tmp_path):
    adata = cells()
    adata.var_names = ["NA", "nan", 'a"b', *NAMES[3:]]
    same(load_cells(write_mtx(tmp_path / "sample", adata)), adata)


@pytest.mark.parametrize("form", ["mtx", "h5"])
def test_features_other_than_genes_are_left_out(tmp_path, form):
    types = ["Gene Expression"] * (G - 2) + ["Antibody Capture", "CRISPR Guide Capture"]
    write, name = (write_mtx, "sample") if form == "mtx" else (write_10x_h5, "cells.h5")
    path = write(tmp_path / name, cells(), types=types)
    with pytest.warns(UserWarning, match=f"left out 2 of {G} features, which are no genes: Antibody Capture, CRISPR"):
        same(load_cells(path), cells()[:, : G - 2])


def test_loom(tmp_path):
    loompy = pytest.importorskip("loompy")
    adata, path = cells(), tmp_path / "cells.loom"
    loompy.create(str(path), adata.X.T.toarray(), {"Gene": np.array(NAMES)}, {"CellID": np.array(adata.obs_names)})
    same(load_cells(path), adata)


def test_modality(tmp_path):
    path = write_h5mu(tmp_path / "cells.h5mu", cells())
    found = load_cells(path, modality="rna")
    same(found, cells())
    assert found.obs.columns.tolist() == ["batch", "donor", "number"]
    assert found.obs["number"].tolist() == list(range(N))[::-1]  # by the cells' names
    assert load_cells(path, modality="prot").shape == (N, 2)


@pytest.mark.filterwarnings("ignore")  # those of mudata
def test_mudata_of_the_library(tmp_path):
    mudata = pytest.importorskip("mudata")
    other = ad.AnnData(np.ones((N, 2), np.float32), obs=pd.DataFrame(index=cells().obs_names))
    mudata.MuData({"rna": cells(), "prot": other}).write(tmp_path / "cells.h5mu")
    same(load_cells(tmp_path / "cells.h5mu", modality="rna"), cells())


def test_names_of_genes_are_made_unique_on_request(tmp_path):
    adata = cells()
    adata.var_names = ["CD4", "CD4", *NAMES[2:]]
    path = write_mtx(tmp_path / "sample", adata)
    assert load_cells(path).var_names[:2].tolist() == ["CD4", "CD4"]
    assert load_cells(path, make_unique=True).var_names[:2].tolist() == ["CD4", "CD4-1"]


def test_the_command_line_reads_a_folder(tmp_path):
    adata = cells()
    adata.var_names = ["CD4", "CD4", *NAMES[2:]]
    config = {"dataset": str(write_mtx(tmp_path / "sample", adata))}
    kind = kind_of(config)
    data = kind.load(config)
    with pytest.raises(ValueError, match=r"'CD4'; .*--make-unique on the command line"):
        kind.estimator(epochs=1).fit(kind.inputs(data))
    found = kind.inputs(kind.load({**config, "make_unique": True}))
    assert found.var_names[:2].tolist() == ["CD4", "CD4-1"]


def test_the_command_line_reads_a_modality(tmp_path):
    config = {"dataset": str(write_h5mu(tmp_path / "cells.h5mu", cells())), "modality": "rna"}
    same(kind_of(config).load(config).selected, cells())


@pytest.mark.parametrize("option", ["modality", "make_unique"])
def test_the_options_are_for_cells(option):
    config = {"dataset": "digits", option: "rna" if option == "modality" else True}
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} is not for"):
        check(config, kind_of(config))


# --- damaged, missing, of another format ---


@pytest.mark.parametrize("name", ["a.zarr", "a.h5", "a.h5mu", "a.h5ad", "a.mtx.gz", "a.loom"])
def test_what_is_missing_is_told(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"there is no file .*{re.escape(name)}"):
        load_cells(tmp_path / name)


@pytest.mark.parametrize("name", ["a.h5", "a.h5mu", "matrix.mtx", "matrix.mtx.gz", "a.zarr"])
@pytest.mark.parametrize("content", [b"", b"no such thing\n" * 9])
def test_another_format_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for table in ("features.tsv", "barcodes.tsv"):
        (tmp_path / table).write_text("a\n")
    with pytest.raises(ValueError, match=rf"cannot read .*{re.escape(name)} as .*damaged or of another format") as told:
        load_cells(tmp_path / name)
    assert "\n" not in str(told.value)


def test_a_folder_lacks_a_table(tmp_path):
    folder = write_mtx(tmp_path / "sample", cells())
    (folder / "barcodes.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"sample holds none of barcodes\.tsv, barcodes\.tsv\.gz"):
        load_cells(folder)
    (folder / "matrix.mtx").unlink()
    with pytest.raises(FileNotFoundError, match=r"sample holds no matrix\.mtx"):
        load_cells(folder)


def test_a_table_of_another_length(tmp_path):
    folder = write_mtx(tmp_path / "sample", cells())
    write_text(folder / "barcodes.tsv", "one\ntwo\n")
    with pytest.raises(ValueError, match=rf"has {G} features and {N} cells, but .* have {G} and 2 rows"):
        load_cells(folder)


def test_several_matrices_in_a_folder(tmp_path):
    write_mtx(tmp_path / "sample", cells(), "a_matrix.mtx", "a_features.tsv", "a_barcodes.tsv")
    folder = write_mtx(tmp_path / "sample", cells(1), "b_matrix.mtx", "b_features.tsv", "b_barcodes.tsv")
    with pytest.raises(ValueError, match=r"several matrices: a_matrix\.mtx, b_matrix\.mtx; name one"):
        load_cells(folder)
    same(load_cells(folder / "b_matrix.mtx"), cells(1))


@pytest.mark.parametrize("version", [2, 3])
def test_counts_may_stay_in_zarr(tmp_path, version):
    adata = cells()
    adata.layers["dense"] = adata.X.toarray()
    adata.obsm["place"] = np.ones((N, 2))
    write_zarr(tmp_path / "cells.zarr", adata, version)
    found = load_cells(tmp_path / "cells.zarr", backed=True)
    assert stays_outside(found) and stays_outside(found, "dense")
    for layer in (None, "dense"):
        np.testing.assert_array_equal(CellBatches(found, layer).rows(np.arange(N)).numpy(), adata.X.toarray())
    pd.testing.assert_frame_equal(found.obs, adata.obs)
    assert found.var_names.tolist() == NAMES
    np.testing.assert_array_equal(found.obsm["place"], adata.obsm["place"])


@pytest.mark.parametrize("version", [2, 3])
def test_a_part_is_missing_in_zarr(tmp_path, version):
    path = tmp_path / "cells.zarr"
    write_zarr(path, cells(), version)
    parts = [part for part in (path / "X" / "indices").rglob("*") if part.is_file() and not part.name.startswith(".z")]
    for part in parts:
        if part.name != "zarr.json":
            part.unlink()
    with pytest.raises(ValueError, match="parts of X/indices are missing"):
        load_cells(path)
    shutil.rmtree(path / "obs")
    with pytest.raises(ValueError, match=r"cannot read .*as a Zarr store of AnnData"):
        load_cells(path)


def test_columns_out_of_range_are_told_before_a_matrix_is_used(tmp_path):
    path = write_10x_h5(tmp_path / "cells.h5", cells())
    with h5py.File(path, "r+") as file:
        file["matrix/indices"][3] = 10**6
    with pytest.raises(ValueError, match=r"cannot read .*cells\.h5 as a 10x \.h5 file.*no whole CSR matrix"):
        load_cells(path)


def test_an_h5ad_by_another_name(tmp_path):
    cells().write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "cells.h5ad").rename(tmp_path / "cells.h5")
    with pytest.raises(ValueError, match=r"let its name end in \.h5ad"):
        load_cells(tmp_path / "cells.h5")


def test_modalities_are_named(tmp_path):
    path = write_h5mu(tmp_path / "cells.h5mu", cells())
    with pytest.raises(ValueError, match=r"several modalities: name one with modality \(--modality\): prot, rna"):
        load_cells(path)
    with pytest.raises(ValueError, match=r"modality='atac' is not in .*, which holds prot, rna"):
        load_cells(path, modality="atac")
    cells().write_h5ad(tmp_path / "cells.h5ad")
    for name in (tmp_path / "cells.h5ad", write_mtx(tmp_path / "sample", cells()), "cortex"):
        with pytest.raises(ValueError, match=r"modality='rna' is for \.h5mu files"):
            load_cells(name, modality="rna")


def test_backed_is_for_h5ad(tmp_path):
    with pytest.raises(ValueError, match=r"backed: .* is read into memory, expected an \.h5ad file or a \.zarr store"):
        load_cells(write_10x_h5(tmp_path / "cells.h5", cells()), backed=True)


# --- what is no AnnData in memory ---


def test_a_collection_is_told_how_it_becomes_an_anndata():
    from anndata.experimental import AnnCollection

    adata = cells()
    collection = AnnCollection([adata[:20].copy(), adata[20:].copy()])
    with pytest.raises(ValueError, match=r"AnnCollection, expected an AnnData: adata\[:\]\.to_adata\(\)"):
        require_anndata(collection)
    same(collection[:].to_adata(), adata)  # what the message says
