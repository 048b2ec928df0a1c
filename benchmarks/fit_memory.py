"""The memory that a fit takes beyond its data, beside scvi-tools' SCVI on the same cells; a process for each fit.

    OMP_NUM_THREADS=1 python benchmarks/fit_memory.py

The packages are imported and the data are in memory before the fit. What is counted is the peak of the process's
memory during the fit, less what it held before. Code that is read from disk when it is first used is part of it.
On Linux alone.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from large_data import apart

from repro import pages
from repro.integration.methods import peak_mb

#: Fits, and what each is of.
FITS = {
    "digits": "VMM: digits, 1,797 images of 64 pixels",
    "kang": "SingleCellVMM: kang, 2,800 cells, 2,000 genes",
    "kang_scvi": "SCVI: the same",
    "kang_all": "SingleCellVMM: kang, all 12,089 genes",
    "kang_all_scvi": "SCVI: the same",
    "cells": "SingleCellVMM: 100,000 simulated cells, 2,000 genes",
    "cells_scvi": "SCVI: the same",
}


def digits(epochs: int) -> Callable[[], object]:
    from sklearn.datasets import load_digits

    from pyro_vmm import VMM

    x, model = load_digits(return_X_y=True)[0], VMM(device="cpu", epochs=epochs, random_state=0)
    return lambda: model.fit(x)


def cells(name: str, epochs: int, folder: str) -> Callable[[], object]:
    """A function that fits the cells of a row of ``FITS``."""
    import anndata

    from repro.integration import data

    if name.startswith("cells"):
        adata = anndata.read_h5ad(Path(folder) / "cells.h5ad")
    elif name.startswith("kang_all"):
        adata = data.select(data.read("kang_ifnb_2800"), 10**6)
    else:
        adata = data.load("kang_ifnb_2800")
    if not name.endswith("scvi"):
        from pyro_vmm import SingleCellVMM

        model = SingleCellVMM("batch", device="cpu", epochs=epochs, random_state=0)
        return lambda: model.fit(adata)
    from scvi.model import SCVI

    from repro.integration.methods import quieten_lightning

    quieten_lightning()
    SCVI.setup_anndata(adata, batch_key="batch")
    return lambda: SCVI(adata, n_hidden=128, n_latent=10).train(
        max_epochs=epochs, train_size=0.9, check_val_every_n_epoch=1, accelerator="cpu", enable_progress_bar=False
    )


def measure(name: str, epochs: int, folder: str) -> float:
    """MB that the fit takes here and now."""
    import torch

    torch.set_num_threads(1)
    fit = digits(epochs) if name == "digits" else cells(name, epochs, folder)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, at what is held now
    before = peak_mb()
    fit()
    return peak_mb() - before


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), sys.argv[4])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FITS, default=list(FITS))
    parser.add_argument("--epochs", type=int, default=25, help="of each fit (default: 25)")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    lines = pages.header(["fit", "MB beyond the data"])
    print(*lines, sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        if any(name.startswith("cells") for name in args.only):
            apart("--simulate", Path(folder) / "cells.h5ad", 100_000, "none")
        for name in args.only:
            found = json.loads(apart("--measure", name, args.epochs, folder, script=__file__).splitlines()[-1])
            lines.append(pages.line([FITS[name], f"{found:.0f}"]))
            print(lines[-1], flush=True)
    if args.out:
        pages.write(args.out, "Memory of a fit", f"{args.epochs} epochs; {pages.machine()}.", lines)


if __name__ == "__main__":
    main()
