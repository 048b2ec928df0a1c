"""Are the genes and shares of clusters that are called the right ones, and what does ``explain`` cost?

    python benchmarks/explain.py --out benchmarks/results/explain.md

It needs ``pip install -c constraints.txt -e ".[bench]"``, and for "kang" the file of ``repro/integration/data.py`` in
``$PYRO_VMM_DATA/cells``. Each part is kept in ``--runs`` and not repeated.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import large_data
import numpy as np
import pandas as pd
from anndata import AnnData, concat, read_h5ad
from scipy import sparse
from scipy.special import log_softmax
from sklearn.datasets import load_digits

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.analysis import Population, Sums, expected_fdr, share_changes, shares_compared
from pyro_vmm.analysis.expression import ComparedCells
from pyro_vmm.runtime import files
from repro import pages
from repro.integration import data as integration
from repro.integration.methods import limit_threads, peak_mb, quieten_lightning

NOMINAL = (0.05, 0.1, 0.2)
DELTA = 0.5
#: Epochs on the simulated counts, and on kang.
EPOCHS, KANG_EPOCHS = 150, 60
#: Genes that interferon beta is known to switch on; those among the most variable ones are used.
INTERFERON = ["ISG15", "ISG20", "IFI6", "IFI27", "IFIT1", "IFIT2", "IFIT3", "IFITM3", "MX1", "LY6E", "OAS1", "CXCL10"]
#: Types that are compared between CTRL and STIM.
TYPES = ["CD14 Mono", "CD4 Naive T", "B", "NK", "CD8 T"]
#: Simulated sets of two conditions, and the expected sizes of clusters in one of them.
SETS = 200
SIZES = (5, 10, 20, 50, 100, 200, 500, 1000)


#: Sets of two groups: their sizes, the inverse dispersion of counts, donors and their spread in log2 units, the change.
FEW = [
    *((f"{n} cells, 1,000 others", (n, 1000), 1.0, None, 0.0, 3.0) for n in (3, 5, 10, 30)),
    ("2 + 2 donors, spread 1, 400 cells", (200, 200), 2.0, (2, 2), 1.0, 2.0),
    ("3 + 3 donors, spread 1, 400 cells", (200, 200), 2.0, (3, 3), 1.0, 2.0),
    ("3 + 3 donors, spread 0.5, 400 cells", (200, 200), 2.0, (3, 3), 0.5, 2.0),
    ("6 + 6 donors, spread 0.5, 400 cells", (200, 200), 2.0, (6, 6), 0.5, 2.0),
]
FEW_SEEDS = 4


def simulate(cells: int = 1500, genes: int = 600, seed: int = 0) -> tuple[AnnData, np.ndarray]:
    """Negative binomial counts of three types in two batches, and the types' true log2 expression, (3, G).

    In each type 15 % of the genes are 0.6 to 2 log2 units up or down; each batch shifts all genes.
    """
    random = np.random.default_rng(seed)
    log_expression = np.tile(np.log2(random.gamma(0.6, 1, genes) + 0.01), (3, 1))
    for profile in log_expression:
        changed = random.random(genes) < 0.15
        profile[changed] += random.choice([-1, 1], changed.sum()) * random.uniform(0.6, 2.0, changed.sum())
    batch_effect = random.normal(0, 0.3, (2, genes))
    kind, batch = random.choice(3, cells, p=[0.5, 0.3, 0.2]), random.integers(2, size=cells)
    rate = 2 ** (log_expression[kind] + batch_effect[batch])
    rate *= 1500 * np.exp(random.normal(0, 0.3, (cells, 1))) / rate.sum(1, keepdims=True)
    counts = random.poisson(rate * random.gamma(5, 1 / 5, rate.shape)).astype(np.float32)
    names = {"batch": [f"b{i}" for i in batch], "type": pd.Categorical([f"t{i}" for i in kind])}
    obs = pd.DataFrame(names, index=[f"cell{i}" for i in range(cells)])
    var = pd.DataFrame(index=[f"gene{j}" for j in range(genes)])
    expression = 2**log_expression
    return AnnData(sparse.csr_matrix(counts), obs=obs, var=var), expression / expression.sum(1, keepdims=True)


def own(adata: AnnData, model: SingleCellVMM, one: np.ndarray, other: np.ndarray, correct: bool) -> pd.DataFrame:
    """Our comparison, by masks."""
    found = model.differential_expression(adata, one, other, batch_correction=correct, delta=DELTA)
    return pd.DataFrame({"lfc": found["lfc"], "q": found["expected_fdr"], "rank": np.arange(len(found))})


def own_clusters(adata: AnnData, model: SingleCellVMM, one: np.ndarray, other: np.ndarray) -> pd.DataFrame:
    """Our comparison of the clusters that have most of these cells, without labels."""
    group1 = np.bincount(model.labels_[one]).argmax()
    group2 = np.setdiff1d(np.unique(model.labels_[other]), group1)
    sizes = np.bincount(model.labels_[other], minlength=group1 + 1)
    large = [int(k) for k in group2 if sizes[k] >= 20]
    found = model.differential_expression(adata, int(group1), large, delta=DELTA)
    return pd.DataFrame({"lfc": found["lfc"], "q": found["expected_fdr"], "rank": np.arange(len(found))})


def wilcoxon(adata: AnnData, one: np.ndarray, other: np.ndarray) -> pd.DataFrame:
    """Scanpy's test, with Benjamini and Hochberg's q, for genes whose log2 fold change is beyond DELTA."""
    import scanpy as sc

    compared = integration_log(adata[one | other].copy())
    compared.obs["side"] = pd.Categorical(np.where(one[one | other], "one", "other"))
    sc.tl.rank_genes_groups(compared, "side", groups=["one"], reference="other", method="wilcoxon")
    table = sc.get.rank_genes_groups_df(compared, "one").set_index("names")
    q = table["pvals_adj"].where(table["logfoldchanges"].abs() > DELTA, 1.0)
    order = pd.DataFrame({"lfc": table["logfoldchanges"], "q": q, "score": -table["scores"].abs()})
    order = order.sort_values("score")
    return order.assign(rank=np.arange(len(order)))


def integration_log(adata: AnnData) -> AnnData:
    """log(1 + counts per 10,000)."""
    import scanpy as sc

    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def stock(adata: AnnData, model, one: np.ndarray, other: np.ndarray, correct: bool) -> pd.DataFrame:
    """scvi-tools' mode "change"."""
    settings = {"mode": "change", "delta": DELTA, "batch_correction": correct, "silent": True, "all_stats": False}
    found = model.differential_expression(adata, idx1=one, idx2=other, **settings)
    probability = found["proba_de"].sort_values(ascending=False)
    q = (1 - probability).cumsum() / np.arange(1, len(probability) + 1)
    return pd.DataFrame({"lfc": found["lfc_mean"][probability.index], "q": q, "rank": np.arange(len(q))})


def fitted(adata: AnnData, epochs: int, seed: int = 0):
    """Our model and scVI's, trained for the same number of epochs."""
    import scvi

    ours = SingleCellVMM("batch", epochs=epochs, random_state=seed).fit(adata)
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    theirs = scvi.model.SCVI(adata)
    theirs.train(epochs, accelerator="cpu", enable_progress_bar=False)
    return ours, theirs


def calibration() -> list[str]:
    """Nominal and real shares of false calls, and power, on simulated counts."""
    adata, expression = simulate()
    ours, theirs = fitted(adata, EPOCHS)
    kind = adata.obs["type"].cat.codes.to_numpy()
    lines = [
        "Simulated counts: 1,500 cells, 600 genes, 3 types, 2 batches. A gene counts as changed if the true log2 fold "
        f"change is beyond {DELTA}. Both models were trained for {EPOCHS} epochs; ours found {ours.n_clusters_} "
        "clusters. Entries are the real share of false calls, and in brackets the share of the changed genes that are "
        "called. The nominal level is the expected share of false calls of the Bayesian methods, of Wilcoxon's test "
        'the q of "no change at all"; its fold change is cut at the same threshold afterwards, which no q knows of. '
        "scVI compares random pairs of cells, so that a gene that only some of the others lack is no sure call.",
        "",
        *pages.header(["comparison", "method", *(f"nominal {level}" for level in NOMINAL), "error of the fold change"]),
    ]
    for name, one, other in (
        ("type 0, type 1", kind == 0, kind == 1),
        ("type 1, type 2", kind == 1, kind == 2),
        ("type 2, all others", kind == 2, kind != 2),
    ):
        shares = np.bincount(kind[other], minlength=3) / other.sum()
        truth = np.log2(expression[kind[one][0]] / (shares @ expression))
        truth = pd.Series(truth, index=adata.var_names)
        methods: dict[str, Callable[[], pd.DataFrame]] = {
            "clusters, assignments drawn": lambda one=one, other=other: own_clusters(adata, ours, one, other),
            "known types": lambda one=one, other=other: own(adata, ours, one, other, True),
            "scVI, mode change": lambda one=one, other=other: stock(adata, theirs, one, other, True),
            "Wilcoxon and fold change": lambda one=one, other=other: wilcoxon(adata, one, other),
        }
        for method, compare in methods.items():
            lines.append(pages.line([name, method, *scored(compare(), truth)]))
    return lines


def scored(found: pd.DataFrame, truth: pd.Series) -> list[str]:
    """Real shares of false calls with the power, and the root mean square error of fold changes."""
    truth = truth[found.index]
    changed = truth.abs() > DELTA
    cells = []
    for level in NOMINAL:
        called = found["q"] <= level
        cells.append(f"{(~changed)[called].mean():.3f} ({(called & changed).sum() / changed.sum():.2f})")
    frequent = np.isfinite(found["lfc"])
    return [*cells, f"{np.sqrt(np.square(found['lfc'] - truth)[frequent].mean()):.2f}"]


def kang() -> list[str]:
    """The ranks of interferon genes between CTRL and STIM, by cell type."""
    adata = integration.load("kang_ifnb_2800")
    ours, theirs = fitted(adata, KANG_EPOCHS)
    known = [gene for gene in INTERFERON if gene in adata.var_names]
    kind, batch = adata.obs["cell_type"].to_numpy(), adata.obs["batch"].to_numpy()
    lines = [
        "Kang, 2,800 PBMC with (STIM) and without (CTRL) interferon beta, the 2,000 most variable genes. Within each "
        "type STIM is compared with CTRL without batch correction, as the batch is the condition. How many of "
        f"{len(known)} known interferon genes ({', '.join(known)}) are among the first 20, and their median rank; "
        f"called: at an expected FDR of 0.05. {KANG_EPOCHS} epochs.",
        "",
        *pages.header(
            ["type", "cells", "method", "among the first 20", "median rank", "called", "of them known", "first five"]
        ),
    ]
    for each in TYPES:
        one, other = ((kind == each) & (batch == side) for side in ("STIM", "CTRL"))
        methods = {
            "VMM": lambda one=one, other=other: own(adata, ours, one, other, False),
            "scVI, mode change": lambda one=one, other=other: stock(adata, theirs, one, other, False),
            "Wilcoxon and fold change": lambda one=one, other=other: wilcoxon(adata, one, other),
        }
        for method, compare in methods.items():
            found = compare()
            called = found.index[found["q"] <= 0.05]
            ranks = found.loc[known, "rank"] + 1
            first = found.sort_values("rank").index[:5]
            row = [each, f"{one.sum()} + {other.sum()}", method, (ranks <= 20).sum(), f"{ranks.median():.0f}"]
            lines.append(pages.line([*row, len(called), len(called.intersection(known)), " ".join(first)]))
    return lines


@dataclass(frozen=True)
class Conditions:
    """Two conditions with clusters of known shares.

    Arguments:
        name: for the table.
        weights: of the clusters, (K,); None draws them for each set, log-normal with standard deviation 1.
        n_clusters: K.
        cells: of each condition, on average.
        donors: of each condition; None takes its cells as one sample.
        spread: the standard deviation between donors of the log of each cluster's weight.
        changed: the share of clusters whose weight changes, by 0.75 to 2.5 log2 units up or down.
        lacking: so many clusters, random ones, that one condition lacks, where some change.
    """

    name: str
    cells: int
    n_clusters: int = 8
    weights: tuple[float, ...] | None = None
    donors: int | None = None
    spread: float = 0.0
    changed: float = 0.0
    lacking: int = 0

    def draw(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of cells, (U, K), the condition of each sample, (U,), and the true log2 ratios, (K,)."""
        base = random.normal(size=self.n_clusters) if self.weights is None else np.log(self.weights)
        effect = np.zeros(len(base))
        moved = random.random(len(base)) < self.changed
        effect[moved] = random.choice([-1, 1], moved.sum()) * random.uniform(0.75, 2.5, moved.sum()) * np.log(2)
        if self.changed:
            effect[random.permutation(len(base))[: self.lacking]] = -np.inf
        if self.donors is None:
            shares = np.stack([log_softmax(base + effect), log_softmax(base)])
            counts = np.stack([random.multinomial(self.cells, np.exp(each)) for each in shares])
            return counts, np.arange(2), (shares[0] - shares[1]) / np.log(2)
        # The share of a typical donor is the geometric mean of the shares of many.
        many = random.normal(0, self.spread, (4000, len(base)))
        typical = [log_softmax(centre + many, 1).mean(0) for centre in (base + effect, base)]
        counts = []
        for centre in (base + effect, base):
            for _ in range(self.donors):
                share = np.exp(log_softmax(centre + random.normal(0, self.spread, len(base))))
                n = random.poisson(self.cells / self.donors * np.exp(random.normal(0, 0.4)))
                counts.append(random.multinomial(n, share))
        return np.stack(counts), np.repeat([0, 1], self.donors), (typical[0] - typical[1]) / np.log(2)


#: What is simulated.
CONDITIONS = [
    Conditions("450 cells", 450),
    Conditions("sizes 5 to 1,000", 1885, weights=SIZES),
    Conditions("450 cells, 4 + 4 donors, spread 0.6", 450, donors=4, spread=0.6),
    Conditions("sizes 5 to 1,000, 4 + 4 donors, spread 0.3", 1885, weights=SIZES, donors=4, spread=0.3),
    Conditions("sizes 5 to 1,000, 2 + 2 donors, spread 0.6", 1885, weights=SIZES, donors=2, spread=0.6),
    Conditions("8,000 cells, 20 clusters, 8 + 8 donors, spread 0.5", 8000, 20, donors=8, spread=0.5),
    Conditions("450 cells, two clusters lacking", 450, lacking=2),
    Conditions(
        "sizes 5 to 1,000, 4 + 4 donors, spread 0.3, two lacking", 1885, weights=SIZES, donors=4, spread=0.3, lacking=2
    ),
]


def abundance() -> list[str]:
    """False calls and power of ``differential_abundance``, with and without the shrinkage of its ratios."""
    lines = [
        f"Simulated numbers of cells of known clusters in two conditions, {SETS} sets a line, 8 clusters unless said. "
        "Without donors cells are drawn from the shares; with them each cluster's log weight is normal between donors, "
        "with the standard deviation told, and the numbers of cells of donors differ. In changed sets each cluster has "
        "with 30 % a log2 change of 0.75 to 2.5, and where it is said one condition lacks two clusters. "
        f"A call is false if the true log2 ratio is within {DELTA}. Told are "
        "the mean share of false calls, in brackets the share of sets with any, and the share of the changed clusters "
        "that are called. In sets without a change the two first are the same. Without shrinkage the same "
        "estimates and errors have a flat prior.",
        "",
        *pages.header(["sets", "method", *(f"nominal {level}" for level in NOMINAL)]),
    ]
    for conditions in CONDITIONS:
        for changed in (0.0, 0.3):
            sets = replace(conditions, changed=changed)
            name = f"{sets.name}, {'changed' if changed else 'no change'}"
            for method, q in (("ours", own_shares), ("without shrinkage", flat_shares)):
                lines.append(pages.line([name, method, *calls(sets, q)]))
    return lines


def own_shares(counts: np.ndarray, condition: np.ndarray, by_sample: bool) -> np.ndarray:
    """The expected shares of false calls of ``differential_abundance``, (K,)."""
    return shares_compared(counts[None], condition, by_sample, DELTA, 0.05, 0.95)["expected_fdr"].to_numpy()


def flat_shares(counts: np.ndarray, condition: np.ndarray, by_sample: bool) -> np.ndarray:
    """The same without shrinkage."""
    return expected_fdr(share_changes(counts[None], condition, by_sample).posterior(shrink=False).beyond(DELTA))


def calls(conditions: Conditions, q: Callable[[np.ndarray, np.ndarray, bool], np.ndarray]) -> list[str]:
    """At each nominal level the mean share of false calls, the share of sets with one, and the power."""
    random = np.random.default_rng(0)
    false, called, found, true = (np.zeros((SETS, len(NOMINAL))) for _ in range(4))
    for i in range(SETS):
        counts, condition, ratio = conditions.draw(random)
        there = counts.sum(0) > 0
        changed = np.abs(ratio[there]) > DELTA
        below = q(counts[:, there], condition, conditions.donors is not None)[:, None] <= np.array(NOMINAL)
        called[i], found[i] = below.sum(0), below[changed].sum(0)
        false[i], true[i] = called[i] - found[i], changed.sum()
    share, power = (false / called.clip(min=1)).mean(0), found.sum(0) / true.sum(0).clip(min=1)
    some = (false > 0).mean(0)
    if not true.any():
        return [f"{each:.3f}" for each in some]
    return [f"{one:.3f} ({two:.2f}), {three:.2f}" for one, two, three in zip(share, some, power, strict=True)]


def few() -> list[str]:
    """False calls among genes of few cells and few donors, with a decoder that knows all but the changes."""
    lines = [
        "500 genes with negative binomial counts, of a decoder that knows them without the change and the donors; "
        f"means of {FEW_SEEDS} sets. In changed sets a tenth of the genes has the log2 fold change told, up or down. "
        "Told are the genes called at a nominal level of 0.05, the share of these that is false, the share of the "
        "changed genes that is called, and the share of genes with more than five counts whose 95 % interval holds the "
        "true change.",
        "",
        *pages.header(["groups", "log2 fold change", "called", "false", "power", "intervals"]),
    ]
    for name, sizes, dispersion, donors, spread, change in FEW:
        for each in (0.0, change):
            found = np.mean([few_set(seed, sizes, dispersion, donors, spread, each) for seed in range(FEW_SEEDS)], 0)
            called, false, power, holds = found
            told = [f"{called:.1f}", f"{false:.2f}", f"{power:.2f}" if each else "", f"{holds:.2f}"]
            lines.append(pages.line([name, f"{each:g}" if each else "none", *told]))
    return lines


def few_set(
    seed: int, sizes: tuple[int, int], dispersion: float, donors: tuple[int, int] | None, spread: float, change: float
) -> tuple[float, float, float, float]:
    """How many genes of a set are called, and the shares that :func:`few` tells."""
    random, genes, library = np.random.default_rng(seed), 500, 2000.0
    share = random.lognormal(0, 1.5, genes)
    share /= share.sum()
    group = np.repeat([0, 1], sizes)
    truth, mean = np.zeros(genes), np.tile(share, (len(group), 1))
    depth = library * random.lognormal(0, 0.3, len(group))
    sample = None
    if donors is not None:
        sample = np.concatenate([np.arange(sizes[0]) % donors[0], donors[0] + np.arange(sizes[1]) % donors[1]])
        mean = mean * 2 ** random.normal(0, spread, (sum(donors), genes))[sample]
    if change:
        truth[: genes // 10] = change * np.where(np.arange(genes // 10) % 2, 1, -1)
        mean[group == 0] *= 2**truth
    x = random.poisson(depth[:, None] * mean * random.gamma(dispersion, 1 / dispersion, mean.shape))
    population = Population.of(np.eye(2)[group], 5000, seed, sample)
    sums = Sums(population, 3 * genes, 200, seed)
    known = np.tile(share, (len(group), 1))
    for rows in np.array_split(population.rows, max(1, len(population) // 500)):
        sums.add(np.concatenate([known[rows], x[rows], depth[rows, None] * known[rows]], 1).astype(np.float32))
    detected = np.stack([(x[group == j] > 0).sum(0) for j in (0, 1)])
    compared = ComparedCells(sums, detected, np.arange(genes), True)
    table = compared.table(0, DELTA, 0.05, 0.95, 0.01 / library).sort_index()
    called, changed = table["called"].to_numpy(), np.abs(truth) > DELTA
    large = share * library * sizes[0] > 5
    holds = (table["lfc_low"] <= truth) & (truth <= table["lfc_high"])
    power = called[changed].mean() if changed.any() else 0.0
    return called.sum(), (called & ~changed).sum() / max(called.sum(), 1), power, holds[large].mean()


def cost() -> list[str]:
    """Processor time and memory of ``explain``."""
    lines = ["Processor time of `explain` with its defaults.", "", *pages.header(["data", "clusters", "seconds"])]
    adata, _ = simulate(10_000, 2_000)
    model = SingleCellVMM("batch", epochs=10, n_components=20, random_state=0).fit(adata[:1000].copy())
    X = load_digits().data
    for name, fit, data in (
        ("10,000 cells, 2,000 genes, 2 batches", model, adata),
        ("digits, a table of 1,797 rows and 64 features", VMM(epochs=5, random_state=0).fit(X), X),
        ("digits, images", VMM(epochs=5, random_state=0).fit(X.reshape(-1, 8, 8)), X.reshape(-1, 8, 8)),
    ):
        start = time.process_time()
        found = fit.explain(data)
        lines.append(pages.line([name, len(found.clusters), f"{time.process_time() - start:.1f}"]))
    return [*lines, "", *memory()]


def memory() -> list[str]:
    """The peak memory of ``explain`` and of a comparison, on files of increasing size with 500 genes."""
    adata, _ = simulate(10_000, 500)
    columns = ["cells", "seconds of `explain`", "of `differential_expression`", "MB after `predict`"]
    lines = [
        'Files of 500 genes (`backed="r"`), each in a fresh process: the peak of memory after `predict`, and how far '
        "it rises further by `explain`, and by `differential_expression` after it.",
        "",
        *pages.header([*columns, "rise by `explain`, MB", "with `differential_expression`, MB"]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.pt"
        fitted = SingleCellVMM("batch", epochs=10, n_components=20, random_state=0).fit(adata[:1000].copy())
        fitted.save(model)
        for times in (1, 10):
            path = Path(folder) / f"{times}.h5ad"
            concat([adata] * times, index_unique="-").write_h5ad(path)
            # A process's peak only rises: what made the files would hide what explaining them takes.
            found = json.loads(large_data.apart("--measure", path, model, script=__file__))
            seconds = [f"{each:.1f}" for each in found["seconds"]]
            before, explained, compared = found["peaks"]
            rises = [f"{peak - before:.0f}" for peak in (explained, compared)]
            lines.append(pages.line([f"{times * adata.n_obs:,}", *seconds, f"{before:.0f}", *rises]))
    return lines


def measure(path: Path, model: Path) -> dict[str, list[float]]:
    """Seconds of ``explain`` and of a comparison of the cells of a file, and the peaks of memory, MB, here and now."""
    fitted, file = SingleCellVMM.load(model), read_h5ad(path, backed="r")
    fitted.predict(file)
    peaks, start = [peak_mb()], time.process_time()
    fitted.explain(file)
    peaks.append(peak_mb())
    middle = time.process_time()
    fitted.differential_expression(file, "t0", groupby="type")
    seconds = [middle - start, time.process_time() - middle]
    return {"seconds": seconds, "peaks": [*peaks, peak_mb()]}


PARTS = {"calibration": calibration, "kang": kang, "few": few, "abundance": abundance, "cost": cost}
TITLES = {
    "calibration": "Is one call in twenty false, if one in twenty is expected?",
    "kang": "Are interferon genes found?",
    "few": "Are genes of few cells and few donors called by chance?",
    "abundance": "Are the clusters whose shares are called the right ones?",
    "cost": "What does it cost?",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--runs", type=Path, default=Path("runs/explain"), help="keeps finished parts")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    parser.add_argument("--measure", type=Path, nargs=2, metavar=("FILE", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    limit_threads(1)
    args.runs.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for name in args.only:
        kept = args.runs / f"{name}.md"
        if not kept.exists():
            if name in ("calibration", "kang"):
                quieten_lightning()
            files.write_text(kept, "\n".join(PARTS[name]()) + "\n")
        lines += ["", f"## {TITLES[name]}", "", *kept.read_text(encoding="utf-8").splitlines()]
    print(*lines, sep="\n")
    if args.out:
        about = f"`python benchmarks/explain.py`, one seed; {pages.machine(1)}, shared with other runs."
        pages.write(args.out, "What the clusters are, and what differs", about, lines[1:])


if __name__ == "__main__":
    main()
