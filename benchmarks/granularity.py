"""The choice of ``pyro_vmm.select`` without labels, beside the default and the best choice with labels.

    python benchmarks/granularity.py --folder runs/granularity --out benchmarks/results/select.md

Every finished fit is kept in the folder, so that the command may be stopped, and repeated with more seeds. Labels only
score the clusterings of each candidate, after the selection.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

import pyro_vmm
from pyro_vmm import VMM, SingleCellVMM, plots
from pyro_vmm.evaluation import clustering
from pyro_vmm.evaluation.selection.evidence import ALL
from repro import images, pages, tabular
from repro.integration import data as integration_data
from repro.scales import SCALES

DEFAULT = 256
FILES = {
    "digits": "Scikit-learn's handwritten digits",
    "mnist": "MNIST, the first 10,000 images",
    "fashion_mnist": "Fashion-MNIST, the first 10,000 images",
    "breast_cancer": "Scikit-learn's breast cancer table, two classes",
    **integration_data.TITLES,
}


def load(name: str):
    """An estimator, its data, and labels (N,).

    The settings are those of ``scripts/fit.py`` for the digits, of ``scripts/reproduce.py --scale small`` for images
    and the table, and the defaults of ``SingleCellVMM``.
    """
    small = SCALES["small"]
    if name == "digits":
        X, labels = load_digits(return_X_y=True)
        return VMM(), X, labels
    if name == "breast_cancer":
        X, labels = tabular.load(name)
        return VMM(**tabular.estimator_settings(small.tabular["vmm"], *X.shape)), X, labels
    if name in small.latent_dims:
        run = images.planned("clustering", small, name, "vmm", "label-free", 0, small.configurations["label-free"])
        return images.estimator(run), *images.load(name, small.rows, None)
    adata = integration_data.load(name)
    return SingleCellVMM(batch_key="batch"), adata, adata.obs["cell_type"].to_numpy()


def scores(selection: pyro_vmm.evaluation.selection.Selection, labels: np.ndarray) -> pd.DataFrame:
    """Means over seeds of NMI and ARI with the labels, of each candidate's fits to all rows that are not held out.

    Fits that diverged have no clusters and are left out.
    """
    known = ~pd.isna(labels)
    found = [
        {
            "m_prior": task.m_prior,
            "nmi": clustering.nmi(labels[known], fit.clusters[known]),
            "ari": clustering.ari(labels[known], fit.clusters[known]),
        }
        for task, fit in selection.fits.items()
        if task.part == ALL and not fit.diverged
    ]
    return pd.DataFrame(found).groupby("m_prior", sort=False).agg(["mean", "std"])


def choices(table: pd.DataFrame) -> dict[str, float]:
    """The ``m_prior`` by each way of choosing; only the last one uses labels."""
    table = table.set_index("m_prior")
    return {
        "recommended": table.index[table["recommended"]][0],
        **({"the default": DEFAULT} if DEFAULT in table.index else {}),
        "likelihood alone": table["log_px"].idxmax(),
        "stability alone": table["stability"].idxmax(),
        "confidence alone": table["confidence"].idxmax(),
        "best NMI with labels": table["nmi"].idxmax(),
    }


def section(
    name: str, selection: pyro_vmm.evaluation.selection.Selection, labels: np.ndarray, figure: str
) -> list[str]:
    """The page's part on one data set."""
    scored, table = scores(selection, labels), selection.table[selection.table["diverged"] == 0]
    columns = {"nmi": ("nmi", "mean"), "ari": ("ari", "mean"), "nmi_sd": ("nmi", "std")}
    table = table.assign(**{key: table["m_prior"].map(scored[of]) for key, of in columns.items()})
    lines = ["", f"## {FILES[name]}", "", *pages.header(["choice", "m_prior", "clusters", "NMI", "ARI"])]
    of = table.set_index("m_prior")
    for choice, m_prior in choices(table).items():
        row = of.loc[m_prior]
        nmi = f"{row['nmi']:.3f} ± {row['nmi_sd']:.3f}"
        lines.append(pages.line([choice, f"{m_prior:g}", f"{row['clusters']:.1f}", nmi, f"{row['ari']:.3f}"]))
    lines += [
        "",
        selection.report().replace("# ", "### ", 1).rstrip(),
        "",
        f"![The evidence over granularities]({figure})",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", default=["digits", "breast_cancer"], choices=list(FILES))
    parser.add_argument("--m-prior", type=float, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/granularity"), help="keeps finished fits")
    parser.add_argument("--out", type=Path, help="a Markdown file; figures go beside it")
    args = parser.parse_args()
    lines: list[str] = []
    for name in args.files:
        estimator, X, labels = load(name)
        estimator.set_params(random_state=0, progress=True)
        selection = pyro_vmm.select(
            estimator, X, args.m_prior, seeds=args.seeds, folder=args.folder / name, refit=False
        )
        figure = f"select_{name}.png"
        found = section(name, selection, labels, figure)
        lines += found
        print(*found, sep="\n", flush=True)
        if args.out:
            plots.save(selection.plot(), args.out.with_name(figure))
    if args.out:
        about = (
            f"`python benchmarks/granularity.py`: {args.seeds} seeds, NMI and ARI with labels as means over them ± "
            f"standard deviation; {pages.machine()}."
        )
        pages.write(args.out, "Granularity chosen without labels", about, lines[1:])


if __name__ == "__main__":
    main()
