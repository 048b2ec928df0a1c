"""From an estimator's parameters to the parts of a model."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import numpy as np
import torch
from scipy import sparse
from sklearn.cluster import kmeans_plusplus
from torch import Tensor, nn

from pyro_vmm.cell_layout import CellLayout
from pyro_vmm.data.cell_rows import CellRows
from pyro_vmm.likelihoods import (
    CELL_LIKELIHOODS,
    LIKELIHOODS,
    CellLikelihood,
    CustomCellLikelihood,
    CustomLikelihood,
    Likelihood,
)
from pyro_vmm.models import VAE, Library, SingleCellVAE
from pyro_vmm.networks import (
    CellDecoder,
    CellFeatures,
    Decoder,
    GaussianEncoder,
    cell_mlp,
    conv_decoder,
    conv_encoder,
    linear,
    mlp,
    output_width,
)
from pyro_vmm.priors import GaussianMixture, Prior, StandardNormal, VampMixture, VampPrior
from pyro_vmm.pseudo_inputs import PseudoInputs
from pyro_vmm.randomness import seeded
from pyro_vmm.rows import Rows, read

# At once: a comparison of all rows would take some of their memory again.
ROWS_CHECKED = 1024
# k-means++ looks at no more cells than these: memory must not grow with their number.
KMEANS_CELLS = 10_000
SCALINGS = ("auto", "range", "standard", None)
#: Likelihoods of any real values: the data may be shifted and stretched, and the noise has a scale.
SCALED = ("normal", "student_t")
INITS = ("random", "k-means++")
INIT_CENTRES = ("normal", "encoded")


def choose_device(device: str) -> torch.device:
    """A torch device; "auto" is a GPU if there is one. ``ValueError`` for one that this machine has not."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} should be 'auto' or a torch device such as 'cpu'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}, but this machine has no CUDA device; expected 'cpu' or 'auto'")
    return chosen


@contextmanager
def random_start(seed: int) -> Iterator[None]:
    """Initial values that depend on the seed alone: drawn in float32, from a stream of their own."""
    with seeded(seed):
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def shift_and_scale(X: np.ndarray, scaling: str | None, likelihood: str | Callable) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays, () or (...), of the dtype of X, such that the model sees (X - shift) / scale.

    Arguments:
        X: training rows, (N, ...).
        scaling: one of ``SCALINGS``.
        likelihood: what "auto" goes by: values of a discrete or bounded support must stay as they are.
    """
    if scaling == "auto":
        scaling = "range" if likelihood in SCALED else None
    if scaling == "range":
        low, high = X.min(), X.max()
        shift, scale = (low + high) / 2, (high - low) / 2 if high > low else 1.0
    elif scaling == "standard":
        # In float64, as float32 loses count over a million rows. And rounding leaves a constant feature some spread.
        shift, scale = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
        scale = np.where((X.max(axis=0) > X.min(axis=0)) & (scale > 0), scale, 1.0)
    else:
        shift, scale = 0.0, 1.0
    # With a wider dtype than its own, X would be copied into that at every scaling.
    return np.asarray(shift, X.dtype), np.asarray(scale, X.dtype)


def likelihood_options(likelihood: str | Callable, options: dict | None, x: Tensor, all_rows: Tensor) -> dict:
    """The arguments of a likelihood, with those that the data tell.

    Arguments:
        likelihood: its name, or a callable.
        options: what the user gave; it wins.
        x: training rows, as the model sees them, (M, ...).
        all_rows: these and those held back, (N, ...): a category may be in the latter alone.
    """
    told = {}
    if likelihood in SCALED:
        # A quarter of the noise of a model that knows the mean and nothing else. From that noise itself, clusters merge
        # before the likelihood is sharp enough to tell them apart; from far above it, the posterior collapses.
        spread = float(x.var(dim=0, correction=0).mean().sqrt())
        told["initial_scale"] = spread / 4 if spread > 0 else 1.0
    elif likelihood == "categorical":
        told["n_categories"] = max(2, int(all_rows.max()) + 1)
    return {**told, **(options or {})}


def _own(given: Callable) -> Callable:
    """A copy of what the user gave, and of a module one in float32, in which models are built."""
    own = copy.deepcopy(given)
    return own.float() if isinstance(own, nn.Module) else own


def build_likelihood(likelihood: str | Callable, event_shape: Sequence[int], options: dict) -> Likelihood:
    """A named likelihood, or the module around a callable; ``options`` are its arguments."""
    try:
        if callable(likelihood):
            return CustomLikelihood(event_shape, _own(likelihood), **options)
        return LIKELIHOODS[likelihood](event_shape, **options)
    except TypeError as error:
        raise ValueError(f"likelihood_options={options} do not fit: {error}") from error


def check_support(
    likelihood: Likelihood | CellLikelihood, x: Rows, values: Callable[[Tensor], Tensor] = lambda rows: rows
) -> None:
    """Raise ``ValueError`` where a row has no density.

    Arguments:
        likelihood: on the device of the rows.
        x: rows as the model sees them, (N, ...).
        values: what of some rows the likelihood is of.
    """
    if type(likelihood).check in (Likelihood.check, CellLikelihood.check):
        return
    with closing(read(x, torch.arange(len(x)).split(ROWS_CHECKED))) as stream:
        for rows in stream:
            likelihood.check(values(rows))


def build_vae(
    likelihood: Likelihood,
    rows: Tensor,  # (2, ...)
    encoder: str | nn.Module,
    decoder: str | nn.Module,
    hidden: Sequence[int],
    latent_dim: int,
    covariance: str,
    covariance_start: str,
) -> VAE:
    """The networks around a likelihood, in float32; the prior is a placeholder until there are pseudo-inputs.

    Arguments:
        likelihood: what the decoder is for.
        rows: two rows of data, as the model sees them.
        encoder, decoder: "mlp", "conv" or a module, which is copied.
        hidden: widths of an "mlp" encoder; the decoder has them in reverse.
        latent_dim: D.
        covariance, covariance_start: of q(z; x).
    """
    event_shape = rows.shape[1:]
    if isinstance(encoder, nn.Module):
        body = _own(encoder)
    elif encoder == "conv":
        body = conv_encoder(event_shape)
    else:
        features = nn.Sequential(*likelihood.features())
        body = nn.Sequential(*features, mlp(features(rows)[0].numel(), hidden))
    qz = GaussianEncoder(body, output_width(body, rows, "encoder"), latent_dim, covariance, covariance_start)
    if isinstance(decoder, nn.Module):
        body = _own(decoder)
    else:
        body = conv_decoder(latent_dim, event_shape) if decoder == "conv" else mlp(latent_dim, list(hidden)[::-1])
    width = output_width(body, rows.new_zeros(2, latent_dim), "decoder")
    px = Decoder(body, width, event_shape, likelihood.outputs_per_feature)
    return VAE(qz, px, likelihood, StandardNormal(latent_dim))


def build_cell_likelihood(likelihood: str | Callable, layout: CellLayout, options: dict) -> CellLikelihood:
    """A named likelihood of cells, or the module around a callable; ``options`` are its arguments."""
    try:
        if callable(likelihood):
            return CustomCellLikelihood(layout, _own(likelihood), **options)
        return CELL_LIKELIHOODS[likelihood](layout, **options)
    except TypeError as error:
        raise ValueError(f"likelihood_options={options} do not fit: {error}") from error


def build_cell_vae(
    likelihood: CellLikelihood,
    hidden: Sequence[int],
    latent_dim: int,
    covariance: str,
    dropout: float,
    encode_covariates: bool,
    library: tuple[Tensor, Tensor] | None,
) -> SingleCellVAE:
    """scVI's networks around a likelihood, in float32; the prior is a placeholder until there are pseudo-inputs.

    Arguments:
        likelihood: what the decoder is for.
        hidden: widths of the encoder's layers; the decoder has them in reverse.
        latent_dim: D.
        covariance: of q(z; x).
        dropout: in the encoder.
        encode_covariates: whether the encoder sees them.
        library: mean and variance of the logarithms of library sizes in each batch, (B,) each; None to observe them.
    """
    layout = likelihood.layout
    features = CellFeatures(layout, likelihood.counts, encode_covariates)
    body = nn.Sequential(features, cell_mlp(features.width, hidden, dropout))
    encoder = GaussianEncoder(body, hidden[-1], latent_dim, covariance)
    decoder = CellDecoder(layout, latent_dim, list(hidden)[::-1], likelihood.outputs_per_gene)
    if library is not None:
        body = nn.Sequential(features, cell_mlp(features.width, hidden[-1:], dropout), linear(hidden[-1], 2))
        # It starts where the prior is, as exp of an untrained network may be far off.
        with torch.no_grad():
            body[-1].bias[0] = library[0].mean()
        library = Library(layout, body, *library)
    return SingleCellVAE(layout, encoder, decoder, likelihood, StandardNormal(latent_dim), library)


def build_prior(name: str, latent_dim: int, pseudo_inputs: Tensor | PseudoInputs, settings: dict) -> Prior:
    """A prior by its name.

    Arguments:
        name: a key of :data:`pyro_vmm.priors.PRIORS`.
        latent_dim: D.
        pseudo_inputs: initial u, (K, ...), or the module; a "gmm" takes only their number, its centres start from
            Normal(0, I), see :func:`encode_centres`.
        settings: of the Bayesian mixtures.
    """
    if name == "standard_normal":
        return StandardNormal(latent_dim)
    if name == "gmm":
        return GaussianMixture(torch.randn(len(pseudo_inputs), latent_dim), **settings)
    return (
        VampPrior(latent_dim, pseudo_inputs) if name == "vamp" else VampMixture(latent_dim, pseudo_inputs, **settings)
    )


@torch.no_grad()
def encode_centres(vae: VAE, rows: Tensor) -> None:
    """Start a "gmm"'s centres where the centres of a "vmm" start: at the encoder's means of rows (K, ...)."""
    vae.prior.mu.copy_(PseudoInputs(rows).encode(vae.encoder).loc)


def initial_rows(x: Tensor, n: int, init: str, seed: int) -> Tensor:
    """Indices (n,) of the rows of x (N, ...) that pseudo-inputs start from."""
    if init == "random":
        return torch.randperm(len(x))[:n]
    _, rows = kmeans_plusplus(x.flatten(1).numpy(), n, random_state=seed)
    return torch.as_tensor(rows)


def initial_cells(
    cells: CellRows,
    train: np.ndarray,  # (M,)
    n: int,
    init: str | Sequence[str],
    seed: int,
    counts: bool,
) -> Tensor:
    """Positions (n,) of the cells that pseudo-inputs start from.

    Arguments:
        cells: all cells, for a name may be that of any.
        train: positions of those to train on.
        n: K.
        init: "random", "k-means++", or names of cells, which random ones then follow.
        seed: of k-means++.
        counts: whether the values are counts; k-means++ then compares log-normalised ones.
    """
    random = torch.as_tensor(train)[torch.randperm(len(train))]
    if isinstance(init, str) and init == "random":
        return random[:n]
    if isinstance(init, str):
        some = random[:KMEANS_CELLS]
        values = [cells.counts.rows(part) for part in some.split(1024)]
        if counts:
            values = [(1e4 * part / part.sum(-1, keepdim=True).clamp(min=1)).log1p() for part in values]
        _, rows = kmeans_plusplus(
            sparse.vstack([sparse.csr_matrix(part.numpy()) for part in values]), n, random_state=seed
        )
        return some[torch.as_tensor(rows)]
    positions = cells.counts.cell_names.get_indexer(list(init))
    if (positions < 0).any():
        missing = [name for name, position in zip(init, positions, strict=True) if position < 0]
        raise ValueError(f"init names {len(missing)} cells that adata lacks: {missing[:10]}")
    named = torch.as_tensor(positions)
    return torch.cat([named, random[~torch.isin(random, named)]])[:n]
