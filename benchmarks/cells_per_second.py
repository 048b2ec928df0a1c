"""Cells a second in training: scvi-tools' SCVI beside SingleCellVMM without a mixture and with one of K = 100.

    python benchmarks/cells_per_second.py --threads 1

Networks, likelihood and minibatches are the same: 128 units, 10 latent dimensions, ZINB, dropout 0.1, 128 cells. The
three take turns in one process. SCVI's epochs are timed from start to start, by a callback, and ours from end to end,
by the history: set-up and the first epoch do not count. Without ``--validation`` all cells are training cells.

``--fit`` adds a fit by the defaults to its own end. It loses components on its way, and the mean of its epochs
counts. It holds cells back, so that ``--validation`` belongs to it. ``--precision bf16`` and ``--reuse-draws`` are
settings of ours; SCVI stays as it is.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from anndata import AnnData
from large_data import differences

from pyro_vmm.runtime.precision import PRECISIONS
from repro import pages
from repro.integration.data import TITLES, load
from repro.integration.methods import quieten_lightning

BATCH_SIZE = 128
#: The share of the cells that --validation holds back, and evaluates in every epoch.
HELD_BACK = 0.1


def scvi_epochs(adata: AnnData, epochs: int, validation: bool) -> tuple[list[float], int]:
    """Seconds of each epoch after the first, and the number of training cells."""
    from lightning.pytorch.callbacks import LambdaCallback
    from scvi.model import SCVI

    ends = []
    # When an epoch starts, the one before it has been validated and logged.
    clock = LambdaCallback(on_train_epoch_start=lambda *_: ends.append(time.perf_counter()))
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=128, n_layers=1, n_latent=10, dropout_rate=0.1, gene_likelihood="zinb")
    model.train(
        max_epochs=epochs + 1,  # the last one is not timed, because no epoch starts after it
        batch_size=BATCH_SIZE,
        train_size=1 - HELD_BACK if validation else 1.0,
        check_val_every_n_epoch=1 if validation else None,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[clock],
        plan_kwargs={"n_epochs_kl_warmup": None},
    )
    return differences(ends)[1:], len(model.train_indices)


def our_epochs(adata: AnnData, epochs: int, validation: bool, prior: str, settings: dict) -> tuple[list[float], int]:
    """Seconds of each epoch after the first, and the number of training cells."""
    from pyro_vmm import SingleCellVMM

    held_back = HELD_BACK if validation else 0.0
    model = SingleCellVMM(
        "batch",
        prior=prior,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        patience=None,
        validation_fraction=held_back,
        settle=False,  # settling follows the epochs and is not timed
        device="cpu",
        random_state=0,
        **settings,
    )
    seconds = model.fit(adata).history_["seconds"].tolist()
    return differences(seconds), adata.n_obs - int(held_back * adata.n_obs)


def whole_fit(adata: AnnData, epochs: int, validation: bool, settings: dict) -> tuple[list[float], int]:
    """Seconds of each epoch after the first of a fit by the defaults, and the number of training cells."""
    from pyro_vmm import SingleCellVMM

    model = SingleCellVMM("batch", settle=False, device="cpu", random_state=0, **settings).fit(adata)
    return differences(model.history_["seconds"].tolist()), adata.n_obs - len(model.validation_rows_)


Method = Callable[[AnnData, int, bool], tuple[list[float], int]]


def all_methods(settings: dict, fit: bool) -> dict[str, Method]:
    """What is timed, with these settings of ours."""
    ours = {name: value for name, value in settings.items() if name != "reuse_draws"}
    found: dict[str, Method] = {
        "scVI (scvi-tools)": scvi_epochs,
        "standard normal (ours)": lambda *args: our_epochs(*args, "standard_normal", ours),
        "VMM, K = 100 (ours)": lambda *args: our_epochs(*args, "vmm", settings),
    }
    return {**found, **({"VMM, a whole fit (ours)": lambda *args: whole_fit(*args, settings)} if fit else {})}


def measure(
    adata: AnnData, rounds: int, epochs: int, validation: bool, methods: dict[str, Method]
) -> dict[str, tuple[list[float], int]]:
    """Seconds of all rounds' epochs, and the cells in one epoch; the order changes at every round."""
    found = {name: ([], 0) for name in methods}
    for turn in range(rounds):
        for name in list(methods)[:: -1 if turn % 2 else 1]:
            seconds, n = methods[name](adata.copy(), epochs, validation)
            found[name] = (found[name][0] + seconds, n)
    return found


def table(found: dict[str, tuple[list[float], int]]) -> list[str]:
    kinds = {"median epoch": statistics.median, "mean epoch": statistics.mean, "fastest epoch": min}
    lines = pages.header(["method", *(part for kind in kinds for part in (f"cells/s, {kind}", "of scVI")), "epochs"])
    rates = {name: [n / kind(seconds) for kind in kinds.values()] for name, (seconds, n) in found.items()}
    of_scvi = rates["scVI (scvi-tools)"]
    for name, own in rates.items():
        pairs = [(f"{rate:.0f}", f"{rate / other:.2f}") for rate, other in zip(own, of_scvi, strict=True)]
        lines.append(pages.line([name, *(part for pair in pairs for part in pair), len(found[name][0])]))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", choices=TITLES, default="kang_ifnb_2800", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5, help="a round and method, of which the first is not counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--validation", action="store_true", help="hold back a tenth, and look at it in every epoch")
    parser.add_argument("--fit", action="store_true", help="add a fit by the defaults to its own end")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of our networks")
    parser.add_argument("--reuse-draws", action="store_true")
    parser.add_argument("--data-dir", help="the folder that holds cells/ (default: $PYRO_VMM_DATA)")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    quieten_lightning()
    adata = load(args.file, args.data_dir)
    torch.set_num_threads(args.threads)  # after scanpy is imported: its numba sets it, too
    methods = all_methods({"precision": args.precision, "reuse_draws": args.reuse_draws}, args.fit)
    lines = table(measure(adata, args.rounds, args.epochs, args.validation, methods))
    print(*lines, sep="\n")
    if args.out:
        validated = "validated in every epoch" if args.validation else "no validation"
        shape = f"{args.file}, {adata.n_obs:,} cells, {adata.n_vars:,} genes, batches of {BATCH_SIZE}"
        pages.write(args.out, "Cells a second", f"{shape}, {validated}; {pages.machine()}.", lines)


if __name__ == "__main__":
    main()
