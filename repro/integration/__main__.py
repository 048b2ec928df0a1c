"""Integration of single-cell counts and clustering: SingleCellVMM with its four priors, beside other methods.

    python -m repro.integration --seeds 5 --out benchmarks/results

It needs ``pip install -e ".[bench]"`` and the files of ``repro/integration/data.py``. Every finished run of a method is
kept in ``--runs``, as numbers (JSON) and embedding (.npz), and not repeated: stop the command and start it again as you
like, or start it several times to share the work. With ``--out`` it writes a page of tables and a figure for each file.

Everything but the prior and the seed is at the estimator's defaults; no label is used before the scores.
"""

# Import heavy packages inside functions: each fit's fresh process imports this file, and its memory is measured.
import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np
from anndata import AnnData

from repro import pages
from repro.integration import report
from repro.integration.data import TITLES, load, log_normalised
from repro.integration.methods import METHODS, fit_alone, limit_threads, store_arrays
from repro.integration.scores import scores
from repro.statistics import plain

PACKAGES = ("pyro_vmm", "scvi-tools", "harmonypy", "scanorama", "scib-metrics", "scanpy")

# --- runs ---


def options_of(name: str, args: argparse.Namespace) -> dict:
    """The options of the command line that apply to a method."""
    takes = METHODS[name].options
    options = dict(args.settings) if "settings" in takes else {}
    return {**options, "epochs": args.epochs} if "epochs" in takes and args.epochs else options


def jobs(name_of_file: str, n_batches: int, args: argparse.Namespace) -> Iterator[tuple[str, int, Path]]:
    """Method, seed and record of every run of a file; seeds are outermost, so that every method soon has a number."""
    for seed in range(args.seeds):
        for name in args.only:
            if n_batches > 1 or not METHODS[name].integrates:
                yield name, seed, args.runs / f"{name_of_file}-{name}-{seed}.json"


def run_all(name_of_file: str, adata: AnnData, args: argparse.Namespace) -> None:
    """Do the runs that are missing in the folder of runs."""
    from pyro_vmm.runtime import files

    reference = log_normalised(adata)
    for name, seed, path in jobs(name_of_file, adata.obs["batch"].nunique(), args):
        with files.claim(path.with_suffix(".lock")) as mine:
            if not mine or finished(path, options_of(name, args)):
                continue
            run(name_of_file, name, seed, adata, reference, path, args)


def finished(path: Path, options: dict) -> bool:
    """Whether there is a record; ``ValueError`` if it was made with other options."""
    if not path.exists():
        return False
    made_with = json.loads(path.read_text())["options"]
    if made_with != options:
        raise ValueError(f"{path} was made with the options {made_with}, not {options}; give another folder as --runs")
    return True


def run(
    name_of_file: str, name: str, seed: int, adata: AnnData, reference: AnnData, path: Path, args: argparse.Namespace
) -> None:
    """Fit, score and store."""
    options = options_of(name, args)
    try:
        result = fit_alone(name, adata, seed, options, args.threads)
    except Exception as error:  # any package may raise; the other runs go on, and the next start tries again
        print(f"{name_of_file} {name} seed {seed} FAILED: {type(error).__name__}: {error}", flush=True)
        return
    costs = asdict(result)
    embedding, clusters, settings = (costs.pop(key) for key in ("embedding", "clusters", "settings"))
    record = {
        "file": name_of_file,
        "method": name,
        "seed": seed,
        "options": options,
        "settings": json.loads(json.dumps(settings, default=str)),
        "machine": pages.machine(args.threads),
        "versions": versions(),
        "scores": plain(scores(reference, embedding, clusters)),
        "costs": plain(costs),
    }
    store(path, record, embedding, clusters)
    shown = ", ".join(f"{key} {value:.3f}" for key, value in record["scores"].items() if value is not None)
    print(f"{name_of_file} {name} seed {seed}: {shown}, {result.seconds:.0f} s", flush=True)


def versions() -> dict[str, str]:
    """The versions of the installed packages among ``PACKAGES``."""
    installed = {package.name: package.version for package in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def store(path: Path, record: dict, embedding: np.ndarray, clusters: np.ndarray | None) -> None:
    """Write the embedding first, then the record: a run with a record is complete."""
    from pyro_vmm.runtime import files

    store_arrays(path.with_suffix(".npz"), embedding, clusters)
    files.write_json(path, record)


# --- pages ---


def render(name_of_file: str, adata: AnnData, args: argparse.Namespace) -> None:
    """Write the page and the figure of a file, from the finished runs."""
    from pyro_vmm import plots

    records, results = {}, {}
    for name, _, path in jobs(name_of_file, adata.obs["batch"].nunique(), args):
        if path.exists():
            record, title = json.loads(path.read_text()), METHODS[name].title
            records.setdefault(title, []).append(record)
            if title not in results:
                with np.load(path.with_suffix(".npz")) as arrays:
                    results[title] = (arrays["embedding"], arrays.get("clusters"))
    if not records:
        return
    page = args.out / f"integration_{name_of_file}.md"
    lines = report.report(records)
    pages.write(page, TITLES[name_of_file], report.about(adata, records), lines)
    plots.save(report.draw(adata, results), page.with_suffix(".png"))
    print(*lines, f"written to {page} and .png", sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m repro.integration", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", nargs="+", choices=TITLES, default=list(TITLES), metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="at most, for SCVI and for ours; their own settings otherwise")
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help="arguments of SingleCellVMM")
    parser.add_argument("--data-dir", help="the folder that holds cells/ (default: $PYRO_VMM_DATA)")
    parser.add_argument("--runs", type=Path, default=Path("runs/integration"), help="the folder of finished runs")
    parser.add_argument("--out", type=Path, help="a folder for tables and figures")
    args = parser.parse_args()
    limit_threads(args.threads)
    args.runs.mkdir(parents=True, exist_ok=True)
    for name in args.files:
        adata = load(name, args.data_dir)
        run_all(name, adata, args)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            render(name, adata, args)


if __name__ == "__main__":
    main()
