"""Single-cell data sets from small files of the published forms, and the genes planted to vary."""

import sys
import types
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy import sparse

from pyro_vmm.data import CELL_PRESETS, CELL_SETS, cell_sets, load_cells, select_genes
from pyro_vmm.data.cell_checks import check_counts
from pyro_vmm.data.cells import CellBatches

FORMATS = {"dense": np.array, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "csr_array": sparse.csr_array}
PLANTED = np.arange(5, 200, 20)  # positions of the ten genes that vary more than their mean tells
N, G = 240, 200


def counts(n: int = N, g: int = G, seed: int = 0) -> np.ndarray:
    """Poisson counts of means from 1 to 30; the planted genes have their mean from every fourth cell, mostly."""
    random = np.random.default_rng(seed)
    rates = np.tile(np.geomspace(1, 30, g), (n, 1))
    planted = PLANTED[PLANTED < g]
    rates[:, planted] *= np.where(np.arange(n) % 4 == 0, 3.7, 0.1)[:, None]
    return random.poisson(rates).astype(np.float32)


def annotated(x, batch=None, **obs) -> ad.AnnData:
    index = [f"cell{i}" for i in range(x.shape[0])]
    columns = {**({} if batch is None else {"batch": batch}), **obs}
    var = pd.DataFrame(index=[f"gene{j}" for j in range(x.shape[1])])
    return ad.AnnData(x, obs=pd.DataFrame(columns, index=index), var=var)


def gene_positions(adata: ad.AnnData) -> list[int]:
    return [int(name.removeprefix("gene")) for name in adata.var_names]


def dense(adata: ad.AnnData) -> np.ndarray:
    return adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)


# Genes


@pytest.mark.parametrize("format_", FORMATS)
def test_the_planted_genes_are_selected(format_):
    x = counts()
    adata = annotated(FORMATS[format_](x), group=np.arange(N) % 3)
    before = adata.copy()
    selected = select_genes(adata, 10)
    assert gene_positions(selected) == PLANTED.tolist()
    np.testing.assert_array_equal(dense(selected), x[:, PLANTED])
    pd.testing.assert_frame_equal(selected.obs, adata.obs)
    assert not selected.is_view
    assert set(adata.var.columns) == set(before.var.columns) and not adata.uns
    np.testing.assert_array_equal(dense(adata), dense(before))


@pytest.mark.parametrize("batch_key", [None, "batch"])
def test_selection_is_scanpys(batch_key):
    random = np.random.default_rng(1)
    x = random.negative_binomial(2, 0.3, (300, 120)) * random.integers(1, 9, 120)
    adata = annotated(sparse.csr_matrix(x), batch=random.choice(["a", "b", "c"], 300))
    expected = scanpy.pp.highly_variable_genes(
        adata, n_top_genes=30, flavor="seurat_v3", batch_key=batch_key, inplace=False
    )
    selected = select_genes(adata, 30, batch_key)
    assert selected.var_names.tolist() == adata.var_names[expected["highly_variable"]].tolist()


def test_a_difference_between_batches_is_no_reason_to_select():
    x, batch = counts(), np.repeat(["a", "b"], N // 2)
    x[N // 2 :, 17] += 40
    adata = annotated(x, batch=batch)
    assert 17 in gene_positions(select_genes(adata, 11))
    within = gene_positions(select_genes(adata, 11, batch_key="batch"))
    assert 17 not in within and set(PLANTED) < set(within)


def test_one_batch_is_none():
    adata = annotated(counts(), batch=["a"] * N)
    assert gene_positions(select_genes(adata, 20, "batch")) == gene_positions(select_genes(adata, 20))


def test_counts_from_a_layer_a_view_and_a_file(tmp_path):
    x = counts()
    adata = annotated(np.log1p(x))
    adata.layers["raw"] = sparse.csr_matrix(x)
    selected = select_genes(adata, 10, layer="raw")
    assert gene_positions(selected) == PLANTED.tolist()
    np.testing.assert_allclose(selected.X, np.log1p(x)[:, PLANTED])
    view = annotated(x)[40:, 20:]
    assert gene_positions(select_genes(view, 9)) == PLANTED[1:].tolist()
    annotated(sparse.csr_matrix(x)).write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    selected = select_genes(backed, 10)
    backed.file.close()
    np.testing.assert_array_equal(dense(selected), x[:, PLANTED])


@pytest.mark.parametrize("n_top_genes", [G, G + 1, 10_000])
def test_all_genes_are_kept_if_there_are_not_more(n_top_genes, monkeypatch):
    monkeypatch.setitem(sys.modules, "skmisc", None)  # not needed then
    selected = select_genes(annotated(counts()), n_top_genes)
    assert selected.shape == (N, G)


def test_rare_genes_and_empty_cells_are_dropped_and_counted():
    x = counts(20, 6)
    x[:, 3] = 0
    x[:2, 3] = 1
    x[:, 1] = np.eye(20)[4] * 2
    x[7:10] = 0
    message = "select_genes dropped 2 of 6 genes with fewer than 3 counts and 3 of 20 cells without a count"
    with pytest.warns(UserWarning, match=message) as caught:
        selected = select_genes(annotated(x), 6)
    assert caught[0].filename == __file__
    assert gene_positions(selected) == [0, 2, 4, 5]
    assert selected.obs_names.tolist() == [f"cell{i}" for i in range(20) if i not in (7, 8, 9)]


def test_a_cell_with_counts_in_dropped_genes_only_is_empty():
    x = counts(20, 4)
    x[3], x[:, 0] = 0, 0
    x[3, 0] = 2
    x[5] = [0, 1, 0, 0]
    with pytest.warns(UserWarning, match="1 of 4 genes with fewer than 3 counts and 1 of 20 cells"):
        assert "cell3" not in select_genes(annotated(x), 4).obs_names
    x[4, 0] = 1
    assert select_genes(annotated(x), 4).shape == (20, 4)


def test_nothing_left_is_an_error():
    with pytest.warns(UserWarning, match="4 of 4 genes"), pytest.raises(ValueError, match="fewer than 3 counts each"):
        select_genes(annotated(np.eye(4)), 4)


def test_duplicate_names_do_no_harm():
    x = counts()
    adata = annotated(x)
    names = [f"gene{j // 2}" for j in range(G)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.var_names = names
        selected = select_genes(adata, 10)
    np.testing.assert_array_equal(selected.X, x[:, PLANTED])


@pytest.mark.parametrize("cells", [1, 2, 5])
def test_a_tiny_batch_does_not_vote_and_does_not_crash(cells):
    # Of one cell no gene varies: scanpy's loess ends the process with a segmentation fault.
    x, tiny = counts(), np.random.default_rng(3).poisson(0.4, (cells, G))
    x = np.concatenate([x, tiny])
    batch = np.repeat(["a", "b", "tiny"], [N // 2, N // 2, cells])
    adata = annotated(x, batch=batch)
    with pytest.warns(UserWarning, match=rf"ignored the batches 'tiny' \({cells} cells\)") as caught:
        selected = select_genes(adata, 30, "batch")
    assert caught[0].filename == __file__
    without = select_genes(adata[: -len(tiny)].copy(), 30, "batch")
    assert selected.var_names.tolist() == without.var_names.tolist()
    assert selected.n_obs == N + cells


def test_many_equal_means_widen_the_neighbourhoods():
    random = np.random.default_rng(0)
    x = random.poisson(np.where(np.arange(400) < 300, 0.02, 2.0), (100, 400)).astype(np.float32)
    adata = annotated(x)
    with pytest.raises(ValueError, match=r"singular|svddc|reciprocal"):
        scanpy.pp.highly_variable_genes(adata, n_top_genes=40, flavor="seurat_v3", inplace=False)
    with pytest.warns(UserWarning, match=r"took span=0\.\d in place of scanpy's 0.3") as caught:
        selected = select_genes(adata, 40)
    assert len(caught) == 1 and selected.n_vars == 40
    span = float(str(caught[0].message).split("span=")[1][:3])
    expected = scanpy.pp.highly_variable_genes(adata, n_top_genes=40, flavor="seurat_v3", span=span, inplace=False)
    assert selected.var_names.tolist() == adata.var_names[expected["highly_variable"]].tolist()


@pytest.mark.parametrize(
    "x", [np.ones((50, 30)), np.zeros((50, 30)), np.eye(50, 30), counts(1, 30)], ids=["same", "none", "eye", "one cell"]
)
def test_genes_that_do_not_vary_are_told(x):
    with pytest.raises(ValueError, match="cannot select 10 of 30 genes: in no batch do genes of 5 or more"):
        select_genes(annotated(x), 10)


def test_a_hopeless_fit_is_told(monkeypatch):
    def fails(*args, **kwargs):
        raise ValueError(b"There are other near singularities as well. 0.1")

    monkeypatch.setattr(scanpy.pp, "highly_variable_genes", fails)
    with pytest.raises(ValueError, match=r"cannot select 10 of 200 genes: .*near singularities.*filter_genes"):
        select_genes(annotated(counts()), 10)


@pytest.mark.parametrize("missing", ["skmisc", "skmisc.loess"])
def test_without_scikit_misc_the_extra_is_named(monkeypatch, missing):
    monkeypatch.delitem(sys.modules, "skmisc.loess", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "pyro_vmm\[cells\]"'):
        select_genes(annotated(counts()), 10)


@pytest.mark.parametrize("value", [0, -1, 2.5, "10", True, None])
def test_n_top_genes_is_checked(value):
    with pytest.raises(ValueError, match=r"n_top_genes=.*expected an integer of at least 1"):
        select_genes(annotated(counts()), value)


@pytest.mark.parametrize("value", [0.5, -1, np.nan, np.inf, 1e10])
@pytest.mark.parametrize("format_", ["dense", "csr"])
def test_what_is_no_count_is_refused(format_, value):
    x = counts()
    x[3, 4] = value
    with pytest.raises(ValueError, match=r"adata\.X holds .*, expected raw counts"):
        select_genes(annotated(FORMATS[format_](x)), 10)


def test_other_places_of_counts_are_named():
    adata = annotated(counts())
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata.copy()
    adata.X = adata.X * 0.5
    message = r"adata\.X holds 0\.5, expected raw counts.* adata.layers holds 'counts'; .*adata.raw.to_adata\(\)"
    with pytest.raises(ValueError, match=message):
        select_genes(adata, 10)
    adata.raw = adata.copy()
    with pytest.raises(ValueError, match=r"adata\.layers holds 'counts'$"):
        select_genes(adata, 10)


def test_unknown_layers_and_batches_are_named():
    adata = annotated(counts(), batch=["a", None] * (N // 2))
    with pytest.raises(ValueError, match=r"layer='raw' is not in adata\.layers"):
        select_genes(adata, 10, layer="raw")
    with pytest.raises(ValueError, match=r"batch_key='donor' is not a column of adata\.obs, which has 'batch'"):
        select_genes(adata, 10, "donor")
    with pytest.raises(ValueError, match="batch_key='batch' has no value in 120 of 240 cells"):
        select_genes(adata, 10, "batch")
    with pytest.raises(ValueError, match="adata is a ndarray, expected an AnnData"):
        select_genes(counts(), 10)


def test_real_genes(real_data):
    adata = load_cells("kang_ifnb_2800", real_data("cells/kang_ifnb_2800.h5ad").parents[1])
    assert adata.shape == (2800, 12089)
    selected = select_genes(adata, 300, "batch")
    assert selected.shape == (2800, 300)
    # Cytokines and markers of the rarer types.
    assert {"CCL3", "CCL4", "CXCL10", "IL1B", "PPBP"} <= set(selected.var_names)
    check_counts(CellBatches(selected))


def test_real_genes_of_many_small_batches(real_data):
    adata = load_cells(real_data("cells/scdesignpop_onek1k.h5ad"))
    with pytest.warns(UserWarning, match=r"took span=0\.\d"):
        selected = select_genes(adata, 200, "batch")
    assert selected.n_vars == 200 and selected.obs["batch"].nunique() == 40


# Named sets


@pytest.fixture
def offline(monkeypatch):
    """As on a machine without a network and without scvi-tools."""

    def read(path, backup_url):
        raise OSError(f"no route to host {backup_url}")

    monkeypatch.setitem(sys.modules, "scvi", None)
    monkeypatch.setattr(scanpy, "read", read)


def labelled(n: int = 60, g: int = 40, **obs) -> ad.AnnData:
    """Raw data as a user would store them: genes and cells of two and of three counts, a type of one cell."""
    x = counts(n, g)
    x[:, 11:13], x[8:10] = 0, 0
    x[3:5, 11], x[3:6, 12] = 1, 1
    x[9, 20], x[8, 20] = 2, 3
    types = np.where(np.arange(n) == 9, "rare", np.tile(["T", "B", "NK"], n // 3))
    columns = {"batch": np.repeat(["b", "a"], n // 2), "cell_type": types}
    return annotated(sparse.csr_matrix(x), **{**columns, **obs})


def check_standard(adata: ad.AnnData, n: int, g: int, batches: list[str]) -> None:
    assert adata.shape == (n, g)
    assert sparse.issparse(adata.X) and adata.X.format == "csr" and adata.X.dtype == np.int32
    for column in ("batch", "cell_type"):
        assert isinstance(adata.obs[column].dtype, pd.CategoricalDtype)
        assert set(adata.obs[column].cat.categories) == set(adata.obs[column])
    assert adata.obs["batch"].cat.categories.tolist() == batches
    totals = check_counts(CellBatches(adata))
    assert totals.min() >= 3 and adata.X.sum(0).min() >= 3


@pytest.mark.parametrize("folder", ["cells", "."])
@pytest.mark.parametrize("name", ["cortex", "pbmc", "lung_atlas", "split_seq"])
def test_every_set_is_read_from_an_h5ad_file(tmp_path, offline, name, folder):
    raw = labelled()
    (tmp_path / folder).mkdir(exist_ok=True)
    raw.write_h5ad(tmp_path / folder / f"{name}.h5ad")
    adata = load_cells(name, tmp_path)
    check_standard(adata, 59, 39, ["0"] if name == "cortex" else ["a", "b"])
    kept = [i for i in range(60) if i != 9]
    assert adata.obs_names.tolist() == raw.obs_names[kept].tolist()
    assert adata.obs["cell_type"].tolist() == raw.obs["cell_type"].iloc[kept].tolist()
    np.testing.assert_array_equal(dense(adata), np.delete(dense(raw)[kept], 11, axis=1))
    adata.write_h5ad(tmp_path / "again.h5ad")


def test_data_dir_comes_from_the_environment_unless_given(tmp_path, offline, monkeypatch):
    labelled().write_h5ad(tmp_path / "pbmc.h5ad")
    monkeypatch.setenv("PYRO_VMM_DATA", str(tmp_path))
    assert load_cells("pbmc").n_obs == 59
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        load_cells("pbmc", tmp_path / "elsewhere")


@pytest.mark.parametrize(("name", "n_top_genes"), [("cortex", 558), ("lung_atlas", 2000), ("pbmc", None)])
def test_as_many_genes_are_selected_as_in_the_paper(tmp_path, offline, monkeypatch, name, n_top_genes):
    seen = []

    def most_variable(counts, batches, n):
        seen.append((n, len(batches.categories)))
        return np.arange(counts.shape[1]) % 2 == 0

    monkeypatch.setattr(cell_sets.sets, "most_variable", most_variable)
    labelled().write_h5ad(tmp_path / f"{name}.h5ad")
    adata = load_cells(name, tmp_path)
    if n_top_genes is None:
        assert not seen and adata.n_vars == 39
    else:
        assert seen == [(n_top_genes, 1 if name == "cortex" else 2)]
        assert gene_positions(adata) == list(range(0, 40, 2))


def test_the_planted_genes_of_a_set_are_selected(tmp_path, offline, monkeypatch):
    raw = annotated(counts(240, 600), cell_type=["T"] * 240)
    raw.write_h5ad(tmp_path / "cortex.h5ad")
    adata = load_cells("cortex", tmp_path)
    assert adata.shape == (240, 558)
    assert set(PLANTED) <= set(gene_positions(adata))


def write_cortex(path, x: np.ndarray, types, names=None) -> None:
    """As Zeisel et al. published it: a corner of labels, eleven lines of annotations, genes below."""
    n, g = x.shape
    labels = "tissue,group #,total mRNA mol,well,sex,age,diameter,cell_id,level1class,level2class".split(",")
    values = {"cell_id": [f"c{i}" for i in range(n)], "level1class": types}
    lines = ["\t".join(["", label, *map(str, values.get(label, [1] * n))]) for label in labels]
    lines += ["\t" * (n + 1)]
    for j, name in enumerate(names or [f"gene{j}" for j in range(g)]):
        lines.append("\t".join([name, str(j % 9), *(str(int(value)) for value in x[:, j])]))
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("file", ["expression_mRNA_17-Aug-2014.txt", "expression.bin"])
def test_cortex_as_published(tmp_path, offline, file):
    x = counts(30, 12)
    names = ["NA", "nan", "1", "Sept2", *(f"gene{j}" for j in range(4, 12))]
    types = np.tile(["interneurons", "microglia", "None"], 10)
    write_cortex(tmp_path / file, x, types, names)
    adata = load_cells("cortex", tmp_path)
    check_standard(adata, 30, 12, ["0"])
    np.testing.assert_array_equal(dense(adata), x)
    assert adata.var_names.tolist() == names
    assert adata.obs_names.tolist() == [f"c{i}" for i in range(30)]
    assert adata.obs["cell_type"].tolist() == types.tolist()


def test_genes_named_twice_are_made_unique(tmp_path, offline):
    write_cortex(tmp_path / "expression.bin", counts(30, 3), ["T"] * 30, ["a", "b", "a"])
    assert load_cells("cortex", tmp_path).var_names.tolist() == ["a", "b", "a-1"]


@pytest.mark.parametrize("content", ["", "<html>not found</html>", "damaged", "words"])
def test_a_foreign_cortex_file_is_refused(tmp_path, offline, content):
    path = tmp_path / "expression.bin"
    write_cortex(path, counts(30, 12), ["T"] * 30)
    text = path.read_text()
    content = {"damaged": text[: len(text) * 2 // 3].rsplit("\t", 3)[0], "words": text.replace("\t3", "\tthree")}.get(
        content, content
    )
    path.write_text(content)
    with pytest.raises(ValueError, match=r"expression\.bin"):
        load_cells("cortex", tmp_path)


def fake_scvi(**loaders) -> types.ModuleType:
    module = types.ModuleType("scvi")
    module.data = types.SimpleNamespace(**loaders)
    return module


def test_cortex_is_downloaded_by_scvi_tools(tmp_path, monkeypatch):
    asked = []

    def cortex(save_path):
        asked.append(save_path)
        return annotated(counts(30, 12).astype(np.int32), cell_type=["T", "B", "NK"] * 10, labels=[0, 1, 2] * 10)

    monkeypatch.setitem(sys.modules, "scvi", fake_scvi(cortex=cortex))
    adata = load_cells("cortex", tmp_path)
    assert asked == [str(tmp_path / "cells")]
    check_standard(adata, 30, 12, ["0"])
    assert adata.obs["cell_type"].cat.categories.tolist() == ["B", "NK", "T"]


@pytest.mark.parametrize("folder", ["cells", ".", None])
def test_pbmc_is_read_by_scvi_tools_where_its_files_lie(tmp_path, monkeypatch, folder):
    asked = []

    def pbmc_dataset(save_path):
        asked.append(save_path)
        raw = annotated(counts(30, 12), batch=np.repeat([0, 1], 15), str_labels=["T", "B", "NK"] * 10)
        raw.obs["labels"] = 7
        raw.obs_names = [f"cell{i // 2}" for i in range(30)]  # the two runs share barcodes
        return raw

    monkeypatch.setitem(sys.modules, "scvi", fake_scvi(pbmc_dataset=pbmc_dataset))
    if folder is not None:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "pbmc_metadata.pickle").touch()
    adata = load_cells("pbmc", tmp_path)
    assert asked == [str(tmp_path / (folder or "cells"))]
    check_standard(adata, 30, 12, ["0", "1"])
    assert adata.obs["cell_type"].tolist() == ["T", "B", "NK"] * 10
    assert "str_labels" not in adata.obs and (adata.obs["labels"] == 7).all()
    assert adata.obs_names.is_unique


def lung(fractions: bool) -> tuple[ad.AnnData, np.ndarray]:
    """As scIB published it: log-normalised values in X, counts in a layer, some of them with fractions."""
    raw = labelled(batch=np.tile(["10", "9", "x"], 20))
    x = dense(raw)
    corrected = np.where(x > 4, x - 0.4, x) if fractions else x
    raw.layers["counts"] = sparse.csr_matrix(corrected)
    raw.X = sparse.csr_matrix(np.log1p(x * 0.37))
    raw.obsm["X_pca"] = np.zeros((60, 2))
    return raw, x


@pytest.mark.parametrize("fractions", [True, False])
def test_lung_atlas_takes_the_layer_of_counts(tmp_path, offline, fractions):
    raw, x = lung(fractions)
    raw.write_h5ad(tmp_path / "lung_atlas.h5ad")
    if fractions:
        with pytest.warns(
            UserWarning, match=r"lung_atlas\.h5ad: counts: [\d.]+% of the values are not whole"
        ) as caught:
            adata = load_cells("lung_atlas", tmp_path)
        assert len(caught) == 1
    else:
        adata = load_cells("lung_atlas", tmp_path)
    check_standard(adata, 59, 39, ["9", "10", "x"])
    np.testing.assert_array_equal(dense(adata), np.delete(np.delete(x, 9, axis=0), 11, axis=1))
    assert not adata.layers and not adata.obsm


def test_lung_atlas_is_downloaded(tmp_path, monkeypatch):
    asked = []

    def read(path, backup_url):
        asked.append((path, backup_url))
        return lung(fractions=False)[0]

    monkeypatch.setattr(scanpy, "read", read)
    assert load_cells("lung_atlas", tmp_path).shape == (59, 39)
    url = "https://figshare.com/ndownloader/files/24539942"
    assert asked == [(tmp_path / "cells" / "lung_atlas.h5ad", url)]


@pytest.mark.parametrize("name", ["cortex", "pbmc", "lung_atlas", "split_seq"])
def test_normalised_values_are_no_counts(tmp_path, offline, name):
    raw = labelled()
    raw.X = sparse.csr_matrix(np.log1p(raw.X.toarray()))
    raw.write_h5ad(tmp_path / f"{name}.h5ad")
    with pytest.raises(ValueError, match=rf"{name}\.h5ad: X holds 0\.6931.*, expected raw counts"):
        load_cells(name, tmp_path)


@pytest.mark.parametrize("folder", ["cells/split-seq", "split-seq"])
def test_split_seq_as_the_authors_have_it(tmp_path, offline, folder):
    (tmp_path / folder).mkdir(parents=True)
    x = counts(30, 12)
    meta = pd.DataFrame({"bc": range(30), "polydT": [True, False] * 15, "cellchat_clusters": ["T", "B", "NK"] * 10})
    meta.to_csv(tmp_path / folder / "cells_meta.tsv.gz", sep="\t", index=False)
    sparse.save_npz(tmp_path / folder / "counts_small.npz", sparse.csc_matrix(x))
    adata = load_cells("split_seq", tmp_path)
    check_standard(adata, 30, 12, ["False", "True"])
    np.testing.assert_array_equal(dense(adata), x)
    assert adata.obs["batch"].tolist() == ["True", "False"] * 15
    assert adata.obs["cell_type"].tolist() == ["T", "B", "NK"] * 10
    assert "polydT" not in adata.obs and "bc" in adata.obs

    sparse.save_npz(tmp_path / folder / "counts_small.npz", sparse.csc_matrix(x[:29]))
    with pytest.raises(ValueError, match=r"counts_small\.npz has shape \(29, 12\), expected 30 cells"):
        load_cells("split_seq", tmp_path)
    for file in ("counts_small.npz", "cells_meta.tsv.gz"):
        content = (tmp_path / folder / file).read_bytes()
        (tmp_path / folder / file).write_bytes(content[:40])
        with pytest.raises(ValueError, match=f"cannot read .*{file}: it is damaged"):
            load_cells("split_seq", tmp_path)
    (tmp_path / folder / "counts_small.npz").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"put split-seq/cells_meta.tsv.gz and split-seq/counts_small.npz there"
    ):
        load_cells("split_seq", tmp_path)


@pytest.mark.parametrize(
    ("name", "hints"),
    [
        ("cortex", ["expression_mRNA_17-Aug-2014.txt there (from https://", 'pip install -e ".[bench]"', "scvi"]),
        ("pbmc", ["gene_info_pbmc.csv", "pbmc_metadata.pickle", "scvi.data.pbmc", 'pip install -e ".[bench]"']),
        ("lung_atlas", ["https://figshare.com/ndownloader/files/24539942", "no route to host", "10.6084"]),
        ("split_seq", ["split-seq/counts_small.npz", "https://github.com/astirn/VampPrior-Mixture-Model"]),
    ],
)
def test_a_missing_set_tells_what_to_put_where(tmp_path, offline, name, hints):
    with pytest.raises(FileNotFoundError) as caught:
        load_cells(name, tmp_path)
    message = str(caught.value)
    for hint in (f"{name} is not in", str(tmp_path / "cells"), f"{name}.h5ad", "$PYRO_VMM_DATA", *hints):
        assert hint in message


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("operator torchvision::nms")])
def test_a_failed_download_is_reported(tmp_path, monkeypatch, error):
    def fails(save_path):
        raise error

    monkeypatch.setitem(sys.modules, "scvi", fake_scvi(cortex=fails, pbmc_dataset=fails))
    for name in ("cortex", "pbmc"):
        with pytest.raises(FileNotFoundError, match=f"could not be downloaded .*{error}"):
            load_cells(name, tmp_path)


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ({"batch": None}, r"pbmc\.h5ad: batch='batch' is not a column of adata.obs, which has 'cell_type'"),
        ({"cell_type": None}, r"pbmc\.h5ad: cell_type='cell_type' is not a column"),
        ({"cell_type": ["T", None] * 30}, r"pbmc\.h5ad: cell_type='cell_type' has no value in 30 of 60 cells"),
        ({"batch": [0.5] * 60}, r"pbmc\.h5ad: batch='batch' holds the number 0.5"),
    ],
)
def test_columns_that_are_missing_are_named(tmp_path, offline, obs, message):
    raw = labelled()
    for column, values in obs.items():
        if values is None:
            del raw.obs[column]
        else:
            raw.obs[column] = values
    raw.write_h5ad(tmp_path / "pbmc.h5ad")
    with pytest.raises(ValueError, match=message):
        load_cells("pbmc", tmp_path)


def test_a_set_without_counts_is_refused(tmp_path, offline):
    raw = annotated(sparse.eye(20, format="csr"), batch=["a"] * 20, cell_type=["T"] * 20)
    raw.write_h5ad(tmp_path / "pbmc.h5ad")
    with pytest.raises(ValueError, match=r"pbmc\.h5ad: no cell has 3 counts"):
        load_cells("pbmc", tmp_path)


# pbmc68k


@pytest.fixture(scope="module")
def bundled():
    return scanpy.datasets.pbmc68k_reduced()


def test_pbmc68k_counts_give_back_the_bundled_values(bundled):
    adata = load_cells("pbmc68k")
    check_standard(adata, 700, 765, ["0"])
    assert not CELL_SETS["pbmc68k"].several_batches and CELL_SETS["pbmc"].several_batches
    assert adata.obs["cell_type"].value_counts()[["Dendritic", "CD14+ Monocyte"]].tolist() == [240, 129]
    assert adata.obs["cell_type"].tolist() == bundled.obs["bulk_labels"].tolist()
    x, totals = dense(adata), bundled.obs["n_counts"].to_numpy(np.float64)[:, None]
    values = bundled.raw.X.toarray()
    # Normalise again, by the totals over all genes, round as the file does.
    again = np.log1p(1e4 * x / totals)
    np.testing.assert_allclose(again, values, atol=5.01e-4, rtol=0)
    np.testing.assert_array_equal(x > 0, values > 0)
    # No other counts would do, and a cell's smallest count is one.
    assert (np.log1p(1e4 * (x + 1) / totals) - values)[x > 0].min() > 3e-3
    assert all(row[row > 0].min() == 1 for row in x)
    assert (x.sum(1) < totals[:, 0]).all()


def test_pbmc68k_of_another_normalisation_is_refused(bundled, monkeypatch):
    other = bundled.copy()
    other.obs["n_counts"] *= 1.1
    monkeypatch.setattr(scanpy.datasets, "pbmc68k_reduced", lambda: other)
    with pytest.raises(ValueError, match="pbmc68k_reduced is not what it was: its value"):
        load_cells("pbmc68k")
    other.raw = None
    with pytest.raises(ValueError, match="neither a layer counts nor raw"):
        load_cells("pbmc68k")


def test_pbmc68k_takes_a_layer_of_counts(bundled, monkeypatch):
    expected = load_cells("pbmc68k")
    later = bundled.copy()
    later.layers["counts"] = expected.X.astype(np.float32)
    later.raw = None
    monkeypatch.setattr(scanpy.datasets, "pbmc68k_reduced", lambda: later)
    np.testing.assert_array_equal(dense(load_cells("pbmc68k")), dense(expected))


# Files


def test_any_h5ad_file_is_read_unchanged(tmp_path, offline, monkeypatch):
    raw = annotated(np.full((4, 3), 0.5), other=list("abca"))
    raw.layers["counts"] = np.ones((4, 3))
    (tmp_path / "data" / "cells").mkdir(parents=True)
    for folder in ("data/cells", "data", "."):
        raw.write_h5ad(tmp_path / folder / f"mine_{folder.replace('/', '_')}.h5ad")
    monkeypatch.chdir(tmp_path)
    for name in ("mine_..h5ad", tmp_path / "mine_..h5ad", "mine_data_cells", "mine_data.h5ad", "data/mine_data.h5ad"):
        adata = load_cells(name, tmp_path / "data")
        np.testing.assert_array_equal(adata.X, raw.X)
        assert list(adata.layers) == ["counts"] and adata.obs["other"].tolist() == list("abca")


def test_unknown_names_and_files_are_told(tmp_path):
    annotated(counts(3, 3)).write_h5ad(tmp_path / "mine.h5ad")
    (tmp_path / "notes.txt").touch()
    known = "cortex, pbmc, lung_atlas, split_seq, pbmc68k"
    with pytest.raises(ValueError, match=rf"'cortx'; expected one of {known}, a file .*, or one of .*: mine$"):
        load_cells("cortx", tmp_path)
    with pytest.raises(ValueError, match=r"called 'cortx'.*: none$"):
        load_cells("cortx", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"notes\.txt: expected a file ending in \.h5ad"):
        load_cells(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match=r"there is no file other\.h5ad \(looked in .*cells"):
        load_cells("other.h5ad", tmp_path)


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_damaged_h5ad_files_are_refused(tmp_path, keep):
    path = tmp_path / "mine.h5ad"
    annotated(counts(30, 30)).write_h5ad(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cannot read .*mine\.h5ad as an h5ad file"):
        load_cells(path)


# Presets


def test_presets_are_those_of_the_authors():
    assert set(CELL_PRESETS) < set(CELL_SETS)
    assert CELL_PRESETS["pbmc"] == CELL_PRESETS["cortex"]
    assert CELL_PRESETS["cortex"] == {
        "hidden": (128,),
        "latent_dim": 10,
        "likelihood": "zinb",
        "learning_rate": 4e-4,
    }
    assert CELL_PRESETS["split_seq"] == CELL_PRESETS["lung_atlas"] | {"likelihood": "zinb"}
    assert CELL_PRESETS["lung_atlas"] == {
        "hidden": (128, 128),
        "latent_dim": 30,
        "likelihood": "nb",
        "learning_rate": 1e-3,
    }


def test_import_needs_no_scanpy(imported):
    assert "pyro_vmm.data.cell_sets" in imported and not {"anndata", "scanpy", "h5py", "skmisc", "scvi"} & imported
