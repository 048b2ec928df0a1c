"""What does the command line do? It turns options and configuration files into an estimator and a run folder."""

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from pyro_vmm.cli.kind import SELECTION, Kind, flag
from pyro_vmm.cli.options import check, estimator, in_options, kind_of, read_config, resolve
from pyro_vmm.cli.parser import PROG, build_parser
from pyro_vmm.cli.terminal import any_text, say
from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.estimators.prior_settings import idle
from pyro_vmm.evaluation.selection import M_PRIOR, SEEDS, select
from pyro_vmm.inference import RATES, TrainingDiverged
from pyro_vmm.plots.ornaments import attempt
from pyro_vmm.report import Results, RunFolder, write_page
from pyro_vmm.runtime.ranks import launched_rank, process_group

__all__ = ["build_parser", "estimator", "kind_of", "main", "read_config", "resolve"]


@any_text()
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, fit, write the run folder and print the closing table; returns the exit status.

    Of several processes that ``torchrun`` started, the first one writes and prints.
    """
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    prog = f"{parser.prog}: process {launched_rank()}" if launched_rank() else parser.prog
    try:
        with _plain_warnings(parser.prog) as messages, ExitStack() as held:
            return _run(given, held, messages)
    except TrainingDiverged as error:
        print(f"{prog}: training stopped: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(f"{prog}: error: {in_options(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        text = "data and networks need more memory than there is; a smaller batch_size, hidden or latent_dim needs less"
        print(f"{prog}: error: {text}", file=sys.stderr)
        return 2


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether an error means that memory ran out; torch raises a ``RuntimeError`` for it on the CPU."""
    texts = ("allocate memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(words in str(error) for words in texts)


def _run(given: dict, held: ExitStack, messages: list[str]) -> int:
    """Fit, write and print.

    Arguments:
        given: options of the command line.
        held: keeps other processes out of the run's folder until it is closed.
        messages: the warnings of this run.
    """
    page = not given.pop("no_report", False)
    resume, out, quiet = given.pop("resume", None), given.pop("out", None), given.pop("quiet", False)
    if resume is not None:
        if out is not None or "config" in given:
            raise ValueError("--resume takes its folder and configuration from the run; leave out --out and --config")
        folder = held.enter_context(RunFolder.existing(resume, locked=not launched_rank()))
        config = _continued(folder, given)
    else:
        config = resolve(given)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        default = Path("runs", f"{Path(str(config['dataset'])).stem}-{config.get('prior', 'vmm')}-{stamp}")
        folder = held.enter_context(RunFolder(out or default))
    kind = kind_of(config)
    check(config, kind)
    try:
        model, data = _fit(kind, config, folder, resume is not None, quiet)
        if launched_rank():
            return 0
        results = kind.results(model, data)
        results.write(folder.path)
        # A resumed run keeps its configuration until the fit has succeeded with the changed options.
        folder.write_config(config, model)
    except KeyboardInterrupt:
        if not launched_rank():
            advice = f"; continue with --resume {folder.path}" if folder.path.exists() else ""
            print(f"\ninterrupted{advice}", file=sys.stderr)
        return 130
    return _show(results, folder.path, messages if page else None)


def _show(results: Results, path: Path, messages: list[str] | None) -> int:
    """Print the closing table, draw the figures and write the page, once the results are written.

    A failure is a warning.

    Arguments:
        results: the results of the run.
        path: its folder.
        messages: warnings for the page; None for no page.
    """
    failed = []
    try:
        for line in attempt("the closing table was not printed", lambda: say(results.closing_table())):
            _warn(line)
        say(f"results in {path}")
        for line in results.decorate(path):
            failed.append(line)
            _warn(line)
        if messages is not None:
            page = partial(write_page, results, path, path / "report.html", [*dict.fromkeys(messages), *failed])
            for line in attempt("report.html was not written", page):
                _warn(line)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the results are in {path}, and --resume {path} makes the figures", file=sys.stderr)
        return 130
    return 0


def _continued(folder: RunFolder, given: dict) -> dict:
    """The options of a run and those that continue it; ``ValueError`` if the options of the selection change.

    The selection can't change once there is a checkpoint: it chose the parameters of the training.
    """
    options = folder.read_config()
    selected = {*SELECTION, *(RATES if "select" in options else ())} - {"select_jobs"}
    changed = [name for name in sorted(selected) if name in given and given[name] != options.get(name)]
    if changed and folder.checkpoint.exists():
        changes = ", ".join(f"{flag(name)} {given[name]} (was {options.get(name)})" for name in changed)
        raise ValueError(f"{folder.path} holds a model trained after another selection: {changes}")
    # An earlier version let options pass that have no effect with the prior.
    unused = idle(options.get("prior", kind_of(options).defaults["prior"]))
    return {**{name: value for name, value in options.items() if name not in unused}, **given}


def _fit(kind: Kind, config: dict, folder: RunFolder, resume: bool, quiet: bool) -> tuple[VMM | SingleCellVMM, Any]:
    """Load the data and train the model, together with the other processes if ``torchrun`` started several."""
    with process_group(config.get("device", "auto")) as ranks:
        # One process downloads a named set, not each of them.
        with ranks.first_ahead() if config["dataset"] in kind.names else nullcontext():
            data = kind.load(config)
        model = estimator(config, progress=not quiet)
        owned = not resume and ranks.rank == 0
        if owned:
            folder.create()
            folder.write_config(config, model)
        checkpoint = folder.checkpoint
        try:
            if "select" in config:
                model.set_params(**_select(kind, config, model, data, folder))
            kind.fit(model, data, checkpoint, checkpoint if resume and checkpoint.exists() else None)
        except TrainingDiverged as error:
            if "select" in config:
                raise
            rate = f"--learning-rate {model.training_.learning_rate / 10:g}"
            raise TrainingDiverged(f"{error.__cause__}; to go on: --resume {folder.path} {rate}") from error
        except Exception:  # most errors come before training; what training has written stays
            if owned:
                folder.discard()
            raise
    return model, data


def _select(kind: Kind, config: dict, model: VMM | SingleCellVMM, data: Any, folder: RunFolder) -> dict:
    """The parameters that a selection recommends; writes its report, table and figure, and prints the report."""
    selection = select(
        model,
        kind.inputs(data),
        config["select"] or M_PRIOR,
        config.get("select_learning_rates"),
        seeds=config.get("select_seeds", SEEDS),
        n_jobs=config.get("select_jobs"),
        folder=folder.path / "selection",
        refit=False,
    )
    if not launched_rank():
        selection.write_tables(folder.path)
        say(selection.report())
        for line in selection.draw(folder.path):
            _warn(line)
    return selection.best


def _warn(text: object, prog: str = PROG) -> None:
    print(f"{prog}: warning: {text}", file=sys.stderr)


@contextmanager
def _plain_warnings(prog: str) -> Iterator[list[str]]:
    """Print warnings for the user in one line, without the place in the code; leave others as they are.

    Yields the list of the warnings for the user, which grows.
    """
    messages: list[str] = []
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message, category, filename, lineno, file=None, line=None):
            if category is UserWarning and launched_rank():
                return  # the first process prints the same warning
            if category is UserWarning:
                messages.append(in_options(str(message)))
                _warn(messages[-1], prog)
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield messages
