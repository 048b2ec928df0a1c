"""The command line: options and configuration files to an estimator and a run folder."""

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyro_vmm.cli.kinds import PRESETS
from pyro_vmm.cli.options import check, estimator, kind_of, read_config, resolve
from pyro_vmm.cli.parser import build_parser
from pyro_vmm.runs import RunFolder
from pyro_vmm.training import TrainingDiverged

__all__ = ["PRESETS", "build_parser", "estimator", "kind_of", "main", "read_config", "resolve"]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, fit, write the run folder and print the closing table; returns the exit status."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    try:
        with _plain_warnings(parser.prog):
            return _run(given)
    except TrainingDiverged as error:
        print(f"{parser.prog}: training stopped: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2


def _run(given: dict) -> int:
    resume, out, quiet = given.pop("resume", None), given.pop("out", None), given.pop("quiet", False)
    if resume is not None:
        if out is not None or "config" in given:
            raise ValueError("--resume takes its folder and configuration from the run; leave out --out and --config")
        folder = RunFolder.existing(resume)
        config = {**folder.read_config(), **given}
    else:
        config = resolve(given)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        default = Path("runs", f"{Path(str(config['dataset'])).stem}-{config.get('prior', 'vmm')}-{stamp}")
        folder = RunFolder(out or default)
    kind = kind_of(config)
    check(config, kind)
    data = kind.load(config)
    model = estimator(config, progress=not quiet)
    if resume is None:
        folder.create()
        folder.write_config(config, model)
    try:
        checkpoint = folder.checkpoint
        kind.fit(model, data, checkpoint, checkpoint if resume is not None and checkpoint.exists() else None)
        results = kind.results(model, data)
        results.write(folder.path)
    except KeyboardInterrupt:
        print(f"\ninterrupted; continue with --resume {folder.path}", file=sys.stderr)
        return 130
    except ValueError:  # told before any training
        if resume is None:
            folder.discard()
        raise
    # Only now for a resumed run: what it changes must first have proved to fit.
    folder.write_config(config, model)
    print(results.closing_table(), f"results in {folder.path}", sep="\n")
    return 0


@contextmanager
def _plain_warnings(prog: str) -> Iterator[None]:
    """Warnings for the user in one line, without the place in the code; those for developers as ever."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message, category, filename, lineno, file=None, line=None):
            if category is UserWarning:
                print(f"{prog}: warning: {message}", file=sys.stderr)
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield
