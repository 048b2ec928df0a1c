"""The experiments that vary the VMM: presets, an ablation, sensitivity.

Each varies the VMM of table 1 in all its configurations; presets also vary that of the tables. A variant with the same
parameters as one of their runs is that run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from pyro_vmm import VMM
from pyro_vmm.estimators.starts import INITS
from pyro_vmm.networks import COVARIANCE_STARTS
from pyro_vmm.priors import RESPONSIBILITIES
from pyro_vmm.priors.hyperpriors import HYPERPRIORS
from repro import images, tabular
from repro.runs import Run
from repro.scales import Scale

ABLATION = {
    "gmm": {"prior": "gmm"},
    "gmm-encoded": {"prior": "gmm", "init_centres": "encoded"},
    "vmm-frozen": {"train_pseudo_inputs": False},
    "vmm": {},
}
#: The rows of the ablation.
ABLATION_TITLES = {
    "gmm": "GMM",
    "gmm-encoded": "GMM, centres started at encoded images",
    "vmm-frozen": "VMM, u frozen at random images",
    "vmm": "VMM",
}


def preset_runs(scale: Scale, trials: int) -> Iterator[Run]:
    """Both hyper-priors with both kinds of responsibilities, on images and on tables."""
    pairs = [(hyperprior, kind) for hyperprior in HYPERPRIORS for kind in RESPONSIBILITIES]
    variants = {f"vmm-{h}-{r}": {"hyperprior": h, "responsibilities": r} for h, r in pairs}
    yield from _runs(scale, trials, variants)
    for usual in tabular.tabular_runs(scale, trials):
        if usual.method == "vmm":
            yield from _varied(usual, variants)


def ablation_runs(scale: Scale, trials: int) -> Iterator[Run]:
    """The steps from free centres to centres that trained pseudo-inputs guide."""
    return _runs(scale, trials, ABLATION)


def sensitivity_runs(scale: Scale, trials: int) -> Iterator[Run]:
    """Vary K, D, the rows that pseudo-inputs start from and q(z; x), one at a time; table 1's own run is in each."""
    variants = {f"vmm-K-{k}": {"n_components": k} for k in scale.component_counts}
    variants |= {f"vmm-D-{d}": {"latent_dim": d} for d in scale.varied_dims}
    variants |= {f"vmm-{init}": {"init": init} for init in INITS}
    variants |= {f"vmm-start-{start}": {"covariance_start": start} for start in COVARIANCE_STARTS}
    return _runs(scale, trials, variants | {"vmm-diagonal": {"covariance": "diagonal"}})


def _runs(scale: Scale, trials: int, variants: Mapping[str, dict]) -> Iterator[Run]:
    """Table 1's VMM with named changes, trials outermost, each run once."""
    for trial in range(trials):
        for dataset in scale.varied_sets:
            for configuration, changes in scale.configurations.items():
                usual = images.planned("clustering", scale, dataset, "vmm", configuration, trial, changes)
                yield from _varied(usual, variants)


def _varied(usual: Run, variants: Mapping[str, dict]) -> Iterator[Run]:
    """A run with each of these changes, without repetitions; a variant equal to the run itself is that run."""
    runs = {}
    for name, changes in variants.items():
        settings = {**usual.settings, "estimator": {**usual.settings["estimator"], **changes}}
        run = replace(usual, method=name, settings=settings)
        run = usual if _parameters(run) == _parameters(usual) else run
        runs[run.path] = run
    return iter(runs.values())


def _parameters(run: Run) -> dict:
    """All parameters, including those at their defaults."""
    return VMM(**run.settings["estimator"]).get_params()


def preset_row(run: Run) -> str:
    """The name of a run's row in the table of presets."""
    found = _parameters(run)
    return f"hyper-prior {found['hyperprior']}, responsibilities {found['responsibilities']}"


def sensitivity_row(run: Run) -> str:
    """The name of a run's row in the table of sensitivity."""
    found = _parameters(run)
    row = f"K = {found['n_components']}, D = {found['latent_dim']}, {found['init']} rows"
    if found["covariance"] == "diagonal":
        return f"{row}, q(z; x) diagonal"
    return row if found["covariance_start"] == "diagonal" else f"{row}, q(z; x) random at first"
