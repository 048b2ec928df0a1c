"""The command line of ``scripts/reproduce.py``."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pyro_vmm.cli.terminal import any_text

ABOUT = """Reproduce a table or figure of the paper, or make one beyond it: do the runs without a result, then render.

Every fit is a run with its own folder under --out. The command may be stopped, killed and started again at any moment:
a finished run is never repeated, a half-done one continues from its checkpoint. Start it several times to share the
work; the processes take different runs. A table or figure is rendered from the finished runs.
"""
EXAMPLES = """examples:
  python scripts/reproduce.py table1 --scale small
  python scripts/reproduce.py table1 --only mnist vmm gmm --trials 1
  python scripts/reproduce.py table1 --scale small --render
  python scripts/reproduce.py tabular --scale small --threads 1
"""


def parser() -> argparse.ArgumentParser:
    from pyro_vmm.runtime.precision import PRECISIONS
    from repro.artefacts import ARTEFACTS
    from repro.scales import SCALES

    shown = "\n".join(f"  {name:<13}{artefact.title}" for name, artefact in ARTEFACTS.items())
    form = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(
        "reproduce.py", description=f"{ABOUT}\n{shown}", epilog=EXAMPLES, formatter_class=form
    )
    found.add_argument("artefact", choices=ARTEFACTS, metavar="ARTEFACT", help="what to reproduce, see above")
    found.add_argument(
        "--scale",
        choices=SCALES,
        default="full",
        metavar="{full,fast,small}",
        help="full: the paper's, for a GPU. fast: a fifth of its epochs at five times its rate, an hour a run. small: "
        "10,000 images, small networks, minutes a run (default: full)",
    )
    found.add_argument("--trials", type=_positive, metavar="N", help="default: 10 at full scale, 1 at fast, 3 at small")
    found.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="data sets, methods and configurations to run and render, such as: mnist vmm label-free",
    )
    found.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the VMM's and its priors' networks; give each its own --out (default: float32)",
    )
    found.add_argument("--render", action="store_true", help="only render what is finished; run nothing")
    found.add_argument(
        "--out", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="default: runs/reproduce"
    )
    found.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of the data sets (default: $PYRO_VMM_DATA)")
    found.add_argument("--threads", type=_positive, metavar="N", help="CPU threads of this process (default: torch's)")
    found.add_argument("--jobs", type=_positive, default=1, metavar="N", help="runs side by side (default: 1)")
    found.add_argument("--quiet", action="store_true", help="no progress display")
    return found


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} should be a whole number, at least 1")
    return int(text)


@any_text()
def main(argv: Sequence[str] | None = None) -> int:
    """Run, render and print; returns the exit status: 1 if a run failed, 2 for wrong arguments."""
    args = parser().parse_args(argv)
    try:
        return _reproduce(args)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"reproduce.py: error: {error}", file=sys.stderr)
        return 2


def _reproduce(args: argparse.Namespace) -> int:
    from repro.artefacts import plan, render
    from repro.cells import Unavailable
    from repro.runs import Folder
    from repro.scales import SCALES
    from repro.work import work_side_by_side

    if args.out.is_file():
        raise ValueError(f"--out {args.out} is a file, expected a folder")
    if args.threads:
        _limit_threads(args.threads)
    trials, out = args.trials or SCALES[args.scale].trials, args.out / args.scale
    runs = plan(args.artefact, args.scale, trials, args.only, args.precision)
    out.mkdir(parents=True, exist_ok=True)
    undone = {"failed": 0, "skipped": 0, "busy": 0}
    if not args.render:
        undone = work_side_by_side(runs, out / "runs", args.data_dir, not args.quiet, args.jobs)
    try:
        print(
            render(args.artefact, args.scale, trials, [Folder(out / "runs", run) for run in runs], out, args.data_dir)
        )
    except Unavailable as error:
        print(f"{args.artefact} is not drawn: {error}", file=sys.stderr)
    if undone["busy"]:
        print(f"{undone['busy']} runs are at work in other processes; render again when they are finished")
    return int(undone["failed"] > 0)


def _limit_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    # For libraries that are not loaded yet, and for fresh processes.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads)))
