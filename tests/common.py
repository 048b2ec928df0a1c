"""What several files of tests need besides fixtures: small models of every prior, small data, and comparisons."""

import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import sparse
from torch import Tensor, nn

from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.estimators.base import Estimator
from pyro_vmm.inference import TrainingConfig
from pyro_vmm.likelihoods import CellLikelihood, LocationScale, Normal
from pyro_vmm.models import VAE
from pyro_vmm.networks import Decoder, GaussianEncoder, lower_cholesky, mlp
from pyro_vmm.priors import PRIORS, Prior, VampMixture
from pyro_vmm.priors.pseudo_inputs import Centres, PseudoInputs, as_pseudo_inputs
from pyro_vmm.runtime.cuda_graphs import as_recorded
from pyro_vmm.runtime.recorder import Outputs
from repro.runs import Folder, Run

#: Of the model that :func:`build` makes: features, latent dimensions and components.
G, D, K = 4, 2, 3
#: Its full covariances are not diagonal even before training.
CorrelatedEncoder = partial(GaussianEncoder, covariance_start="random")

#: The sample sites of each prior's model: of the hyper-priors, and all of them.
HIERARCHY = {"alpha", "log_pi", "pi", "mu", "precision_tril", "precision"}
SITES = {
    "standard_normal": {"z", "x"},
    "vamp": {"c", "z", "x"},
    "gmm": HIERARCHY | {"c", "z", "x"},
    "vmm": HIERARCHY | {"c", "z", "x"},
    "student_t": HIERARCHY | {"c", "z", "x"},
}
every_prior = pytest.mark.parametrize("prior", PRIORS)
#: Those whose components are normals.
every_normal_prior = pytest.mark.parametrize("prior", [name for name in PRIORS if name != "student_t"])
#: Those whose parameters the MAP step trains.
BY_MAP = ("gmm", "vmm", "student_t")

#: Processes that are forks of one that has done nothing but import: quick, and safe where this one has threads.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["anndata", "pyro_vmm.cli", "repro.cli", "sklearn.mixture"])

#: What ``sample`` of an estimator with five components refuses, and what it says.
WRONG_DRAWS = [
    ({"n_samples": 0}, "n_samples=0 should be a whole number, at least 1"),
    ({"n_samples": 10.0}, "n_samples=10.0 should be a whole number, at least 1"),
    ({"component": 5}, "component=5 should be a whole number between 0 and 4, or None"),
    ({"component": "0"}, "component='0' should be a whole number between 0 and 4"),
    ({"component": 1.0}, "component=1.0 should be a whole number between 0 and 4"),
]


# Models


def build_prior(name: str, latent_dim: int, pseudo_inputs: torch.Tensor | PseudoInputs, **settings) -> Prior:
    """A prior by its name; a "gmm" takes only the number of the pseudo-inputs, and draws its centres."""
    return PRIORS[name].build(latent_dim, as_pseudo_inputs(pseudo_inputs), settings)


def plain(features: int) -> nn.Sequential:
    return mlp(features, (8,))


def noisy(features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))


def build(prior: str = "vmm", networks=plain, seed: int = 1, **settings) -> VAE:
    """A model of :func:`data`, with this prior; the same at every call."""
    torch.manual_seed(seed)
    p_z = build_prior(prior, D, data(K), **settings)
    return VAE(CorrelatedEncoder(networks(G), 8, D), Decoder(networks(D), 8, (G,)), Normal((G,)), p_z)


def config(**changes) -> TrainingConfig:
    return TrainingConfig(**{"epochs": 6, "batch_size": 16, "learning_rate": 1e-2, "patience": None, **changes})


# Of one's own


class Tied(VampMixture):
    """A prior of one's own: one precision and one offset of the centres for all components, and a count for each."""

    per_component = ("count",)
    shared = ("precision_raw",)

    def __init__(self, latent_dim, pseudo_inputs, **settings):
        super().__init__(latent_dim, pseudo_inputs, **settings)
        self.precision_raw = nn.Parameter(self.precision_raw[0].detach().clone())
        self.offset = nn.Parameter(0.1 * torch.arange(latent_dim) + 0.1)
        self.register_buffer("count", torch.arange(self.n_components))

    @property
    def precision_tril(self):
        return lower_cholesky(self.precision_raw).expand(self.n_components, -1, -1)

    def centres(self, encoder):
        loc, tril = super().centres(encoder)
        return Centres(loc + self.offset, tril)


class Points(Prior):
    """A prior of one's own from nothing: points and one precision per dimension, trained by the MAP step."""

    trained_by_map = True
    free_centres = True
    per_component = ("mu",)

    def __init__(self, mu):
        super().__init__(mu.shape[1], len(mu))
        self.mu, self.log_precision = nn.Parameter(mu.clone()), nn.Parameter(torch.zeros(self.latent_dim))

    @classmethod
    def build(cls, latent_dim, pseudo_inputs, settings):
        return cls(torch.randn(len(pseudo_inputs), latent_dim))

    def forward(self, encoder=None):
        log_weights = torch.full_like(self.mu[:, 0], 1 / self.n_components).log()
        precision_tril = torch.diag_embed((self.log_precision / 2).exp()).expand(self.n_components, -1, -1)
        return MixtureOfGaussians.from_precision(log_weights, self.mu, precision_tril)


class Laplace(LocationScale):
    """A likelihood of one's own, with a noise scale."""

    def forward(self, h):
        return self.independent(dist.Laplace(h, self.scale))


class Geometric(CellLikelihood):
    """A likelihood of cells of one's own, of counts."""

    def forward(self, h, library, covariates):
        return dist.Geometric(1 / (1 + library * self.expression(h))).to_event(1)


# Data


def data(rows: int = 50) -> torch.Tensor:
    """Two clusters, the same at every call."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(rows, G, generator=generator) + 4.0 * (torch.arange(rows) % 2)[:, None]


def planted(n: int = 90, batches: int = 2, types: int = 3, depth: float = 150.0, seed: int = 0) -> ad.AnnData:
    """Cells of types that each have marker genes, in batches that each tilt all of the 12 genes."""
    random, genes = np.random.default_rng(seed), 12
    type_, batch = np.arange(n) % types, (np.arange(n) // types) % batches
    profile = np.where(np.arange(genes) * types // genes == np.arange(types)[:, None], 12.0, 1.0)
    rate = profile[type_] * random.uniform(0.4, 1.6, (batches, genes))[batch]
    rate *= depth * random.uniform(0.7, 1.3, (n, 1)) / rate.sum(1, keepdims=True)
    obs = {
        "batch": pd.Categorical([f"b{i}" for i in batch]),
        "type": pd.Categorical([f"t{i}" for i in type_]),
        "donor": pd.Categorical([f"d{i}" for i in random.integers(3, size=n)]),
        "age": random.normal(50.0, 10.0, n),
        "factor": random.uniform(0.5, 2.0, n),
    }
    return annotated(random.poisson(rate).astype(np.float32), pd.DataFrame(obs))


def annotated(x: np.ndarray, obs: pd.DataFrame | None = None) -> ad.AnnData:
    """Sparse counts (N, G) with names of cells and genes."""
    names = [f"cell{i}" for i in range(len(x))]
    obs = pd.DataFrame(index=names) if obs is None else obs.set_index(pd.Index(names))
    return ad.AnnData(sparse.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"gene{j}" for j in range(x.shape[1])]))


# Comparisons


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    """The names of what is no longer as in :func:`state`."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def assert_same(left, right, path: str = "") -> None:
    """Bit for bit, through dicts and lists; seconds are not compared."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left.keys() - {"seconds"}:
            assert_same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for i, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{path}[{i}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    else:
        assert left == right or (left != left and right != right), path


def assert_same_arrays(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Bit for bit, and of the same dtypes."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def assert_same_fits(one: Estimator, other: Estimator) -> None:
    """Two fits, bit for bit: parameters, history, scaling and what the data told."""
    assert type(one.vae_.likelihood) is type(other.vae_.likelihood) and type(one.vae_.prior) is type(other.vae_.prior)
    assert_same(state(one.vae_), state(other.vae_))
    assert_same(one.history_.to_dict("list"), other.history_.to_dict("list"))
    for name in ("n_components_", "scale_", "shift_", "likelihood_options_"):
        assert getattr(one, name, None) == getattr(other, name, None)


def message_of(call: Callable) -> str:
    """The one line of the ``ValueError`` that a call raises."""
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value) and "torch.Size" not in str(caught.value)
    return str(caught.value)


def finished(out: Path) -> dict[Path, tuple[int, str]]:
    """Each result of an experiment under a folder: when it was written, and what it says."""
    return {path: (path.stat().st_mtime_ns, path.read_text()) for path in out.rglob("result.json")}


def opened(root: Path, run: Run) -> Folder:
    """The folder of an experiment's run, as it is when the run begins."""
    folder = Folder(root, run)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.begin()
    return folder


def drawn(figure: Figure) -> Figure:
    """Draw as `save` does, for what matplotlib computes late can warn too; returns the figure."""
    assert isinstance(figure, Figure)
    FigureCanvasAgg(figure).draw()
    return figure


def run(*arguments) -> int:
    """The exit status of the command line with these arguments."""
    from pyro_vmm.cli import main

    return main([str(argument) for argument in arguments])


# Recorded steps


class Reruns:
    """What CUDA graphs do, without a GPU: a replay runs the step again, on the same tensors."""

    patience = 1
    rehearses = True
    follows_rates = False
    to_be_proven = False

    def rehearse(self, run, x) -> Outputs:
        with as_recorded():
            return run(*x)

    def record(self, run, x, groups, parameters=()):
        outputs: list[Tensor] = []

        def replay(*x) -> Outputs:
            with as_recorded():
                values = run(*x)
            if not outputs:
                outputs.extend(value.clone() for value in values)
            for output, value in zip(outputs, values, strict=True):
                output.copy_(value)
            return tuple(outputs)

        return replay(*x), replay


def same_but_seconds(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    """Assert that two tables of fits are equal but for what is of a clock."""
    timeless = [name for name in ours if not name.startswith("seconds")]
    pd.testing.assert_frame_equal(ours[timeless], theirs[timeless])
