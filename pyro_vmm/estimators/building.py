"""From an estimator's parameters to the parts of a model."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from pyro_vmm.data.augmentations import Augmentation, as_augmentation
from pyro_vmm.likelihoods import (
    CellLikelihood,
    CustomCellLikelihood,
    CustomLikelihood,
    Given,
    Likelihood,
    cell_likelihood_class,
    likelihood_class,
)
from pyro_vmm.models import VAE, Library, SingleCellVAE
from pyro_vmm.networks import (
    DECODERS,
    ENCODERS,
    CellDecoder,
    CellFeatures,
    CovarianceShape,
    CovarianceStart,
    Decoder,
    GaussianEncoder,
    cell_mlp,
    inference_mode,
    linear,
    output_width,
)
from pyro_vmm.priors import Prior, StandardNormal, prior_class
from pyro_vmm.priors.base import HANDED
from pyro_vmm.priors.pseudo_inputs import PseudoInputs, as_pseudo_inputs
from pyro_vmm.priors.registry import Given as PriorGiven
from pyro_vmm.runtime.arguments import named_arguments, unknown_arguments
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.checks import described, one_line
from pyro_vmm.runtime.randomness import seeded
from pyro_vmm.runtime.rows import Rows, read

# So many rows are looked at at once: all of them would take memory of their size.
ROWS_AT_ONCE = 1024
NETWORKS = {"encoder": ENCODERS, "decoder": DECODERS}
T = TypeVar("T")
L = TypeVar("L", Likelihood, CellLikelihood)


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
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={device!r}, but this machine has {torch.cuda.device_count()} CUDA device(s)")
    if chosen.type not in ("cpu", "cuda"):
        _try(chosen)
    return chosen


def _try(device: torch.device) -> None:
    """Raise ``ValueError`` for a device that can't hold numbers on this machine."""
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # by the device, torch raises half a dozen types
        raise ValueError(
            f"device={str(device)!r} is not available on this machine; expected 'cpu' or 'auto'"
        ) from error


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


def check_augmentation(given: str | Augmentation, likelihood: Likelihood, rows: Tensor) -> None:
    """Raise ``ValueError`` where changed copies of rows have another shape, or no density.

    Arguments:
        given: the name of what makes the copies, or a callable.
        likelihood: of the rows.
        rows: as the model sees them, (M, ...).
    """
    augment, named = as_augmentation(given), f"augment={described(given)}"
    assert augment is not None, "None makes no copies"
    try:
        changed = augment(rows.clone())  # it may change them in place
    except Exception as error:  # whatever a callable of the user's own may raise
        raise ValueError(f"{named} can't change rows of X: {one_line(error)}") from error
    if not isinstance(changed, Tensor) or changed.shape != rows.shape:
        found = f"shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else described(changed)
        raise ValueError(f"{named} makes {found} of rows of shape {tuple(rows.shape)}")
    if not changed.isfinite().all():
        raise ValueError(f"{named} makes values that are not finite")
    try:
        check_support(likelihood, changed.to(rows))
    except ValueError as error:
        raise ValueError(f"{error}; x is a row changed by {named}") from error


def likelihood_options(likelihood: Given, options: dict | None, all_rows: Tensor) -> dict:
    """The arguments of a likelihood, with those that follow from the data.

    Arguments:
        likelihood: its name, a class or a callable; an object has its arguments already.
        options: what the user gave; it wins.
        all_rows: training rows and those held back, as the model sees them, (N, ...).
    """
    cls, options = None if isinstance(likelihood, Likelihood) else likelihood_class(likelihood), options or {}
    if cls is None or not inspect.signature(cls).parameters.keys() - {"event_shape", *options}:
        return {**options}  # nothing is left open
    return {**cls.domain_options(all_rows), **options}


def _own(given: T) -> T:
    """A copy of what the user gave, and of a module one in float32, in which models are built."""
    own = copy.deepcopy(given)
    return own.float() if isinstance(own, nn.Module) else own


def build_likelihood(likelihood: Given, event_shape: Sequence[int], options: dict) -> Likelihood:
    """What a name, a class or an object stands for, or the module around a callable.

    Arguments:
        likelihood: see :func:`~pyro_vmm.likelihoods.likelihood_class`; an object is copied.
        event_shape: the shape of one observation.
        options: arguments of the likelihood; an object has its own.
    """
    if isinstance(likelihood, Likelihood):
        own = _own(likelihood)
        return _fitting(own, "event_shape", tuple(own.event_shape), tuple(event_shape))
    return _made(likelihood, likelihood_class(likelihood), CustomLikelihood, event_shape, options)


def _made(
    likelihood: Given, cls: type[L] | None, custom: type[L], about: Sequence[int] | CellLayout, options: dict
) -> L:
    """A likelihood of a name or class, or of the class ``custom`` around a function, for which ``cls`` is None."""
    if cls is None:
        factory = partial(custom, function=_own(likelihood))
    else:
        factory = cast("Callable[..., L]", cls if isinstance(likelihood, str) else likelihood)
    try:
        return factory(about, **options)
    except TypeError as error:
        given = options if cls is None else {**getattr(likelihood, "keywords", {}), **options}
        known = named_arguments(custom, 2) if cls is None else named_arguments(cls, 1)
        who = "a function" if cls is None else cls.__name__
        problem = unknown_arguments(error, dict(zip(given, given, strict=True)), known, who) or one_line(error)
        raise ValueError(f"likelihood_options={options} do not fit: {problem}") from error


def _fitting(likelihood: L, name: str, found, expected) -> L:
    """A likelihood that was made by the user; ``ValueError`` if it is for other data."""
    if found != expected:
        raise ValueError(f"likelihood={type(likelihood).__name__} has {name}={found}, but the data have {expected}")
    return likelihood


def check_support(
    likelihood: Likelihood | CellLikelihood, x: Rows, values: Callable[[Tensor], Tensor] = lambda rows: rows
) -> None:
    """Raise ``ValueError`` where a row has no density.

    Arguments:
        likelihood: on the device of the rows.
        x: rows as the model sees them, (N, ...).
        values: the part of some rows that the likelihood describes.
    """
    if type(likelihood).check in (Likelihood.check, CellLikelihood.check):
        return
    with closing(read(x, torch.arange(len(x)).split(ROWS_AT_ONCE))) as stream:
        for rows in stream:
            likelihood.check(values(rows))


def check_networks(**networks: str | Callable) -> None:
    """Raise ``ValueError`` unless an encoder or decoder is a name, a module or a callable, which may make one."""
    for name, given in networks.items():
        if not (callable(given) or (isinstance(given, str) and given in NETWORKS[name])):
            raise _no_network(name, given)


def _no_network(name: str, given: object, found: str = "") -> ValueError:
    expected = f"one of {tuple(NETWORKS[name])}, or a module, or a callable that makes one of the shape of its input"
    return ValueError(f"{name}={described(given)} should be {expected}{found}")


def own_network(name: str, given: str | Callable, shape: tuple[int, ...] | int, *others) -> nn.Module:
    """A network in float32; ``ValueError`` if there is none.

    Arguments:
        name: "encoder" or "decoder".
        given: a module, which is copied, a callable that makes one of the shape of its input, or the name of one.
        shape: of the input.
        others: further arguments of a function that has a name.
    """
    if isinstance(given, nn.Module):
        return _own(given)
    check_networks(**{name: given})
    if isinstance(given, str):
        made = NETWORKS[name][given](shape, *others)
    else:
        try:
            made = given(shape)
        except Exception as error:  # whatever a function of the user's own may raise
            raise _no_network(name, given, f"; of {shape} it fails: {one_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise _no_network(name, given, f"; of {shape} it makes {described(made)}")
    return made.float()


def build_vae(
    likelihood: Likelihood,
    rows: Tensor,  # (2, ...)
    encoder: str | Callable,
    decoder: str | Callable,
    hidden: Sequence[int],
    latent_dim: int,
    covariance: CovarianceShape,
    covariance_start: CovarianceStart,
) -> VAE:
    """The networks around a likelihood, in float32; the prior is a placeholder until there are pseudo-inputs.

    Arguments:
        likelihood: what the decoder is for.
        rows: two rows of data, as the model sees them.
        encoder, decoder: see :func:`own_network`.
        hidden: widths of an "mlp" encoder; the decoder has them in reverse.
        latent_dim: D.
        covariance, covariance_start: of q(z; x).
    """
    event_shape = tuple(rows.shape[1:])
    check_networks(encoder=encoder, decoder=decoder)
    body = own_network("encoder", encoder, event_shape, hidden, likelihood.features())
    qz = GaussianEncoder(body, output_width(body, rows, "encoder"), latent_dim, covariance, covariance_start)
    body = own_network("decoder", decoder, latent_dim, event_shape, hidden)
    width = output_width(body, rows.new_zeros(2, latent_dim), "decoder")
    px = Decoder(body, width, event_shape, likelihood.outputs_per_feature)
    return VAE(qz, px, likelihood, StandardNormal(latent_dim))


def build_cell_likelihood(likelihood: Given, layout: CellLayout, options: dict) -> CellLikelihood:
    """:func:`build_likelihood` of cells."""
    if isinstance(likelihood, CellLikelihood):
        own = _own(likelihood)
        return _fitting(own, "layout", own.layout, layout)
    return _made(likelihood, cell_likelihood_class(likelihood), CustomCellLikelihood, layout, options)


def build_cell_vae(
    likelihood: CellLikelihood,
    hidden: Sequence[int],
    latent_dim: int,
    covariance: CovarianceShape,
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
    latent_library = None
    if library is not None:
        hidden_layers = cell_mlp(features.width, hidden[-1:], dropout)
        head = linear(hidden[-1], 2)
        # It starts where the prior is, as exp of an untrained network may be far off.
        with torch.no_grad():
            head.bias[0] = library[0].mean()
        latent_library = Library(layout, nn.Sequential(features, hidden_layers, head), *library)
    return SingleCellVAE(layout, encoder, decoder, likelihood, StandardNormal(latent_dim), latent_library)


def build_prior(prior: PriorGiven, latent_dim: int, pseudo_inputs: Tensor | PseudoInputs, settings: Mapping) -> Prior:
    """A prior that its class builds, or a copy of the one given.

    Arguments:
        prior: a key of :data:`pyro_vmm.priors.PRIORS`, a class, a partial of one, whose settings win, or an object.
        latent_dim: D.
        pseudo_inputs: initial u, (K, ...), or the module.
        settings: an estimator's settings of priors; an object has its own.
    """
    cls, pseudo_inputs = prior_class(prior), as_pseudo_inputs(pseudo_inputs)
    if isinstance(prior, Prior):
        built = _own(prior)
    else:
        own = getattr(prior, "keywords", {})
        try:
            built = cls.build(latent_dim, pseudo_inputs, {**settings, **own})
        except (TypeError, NotImplementedError) as error:
            problem = _unknown_settings(error, cls, settings, own) or f"{cls.__name__}.build fails: {one_line(error)}"
            raise ValueError(f"prior={described(prior)}: {problem}") from error
        if not isinstance(built, Prior):
            raise ValueError(f"prior={described(prior)}: {cls.__name__}.build returned {described(built)}, not a prior")
        expected = (latent_dim, len(pseudo_inputs) if cls.has_clusters else 1)
        if (found := (built.latent_dim, built.n_components)) != expected:
            raise ValueError(
                f"prior={described(prior)}: {cls.__name__}.build made a prior of (latent_dim, n_components)={found}, "
                f"expected {expected}"
            )
    built.check()
    return built


def _unknown_settings(error: Exception, cls: type[Prior], settings: Mapping, own: Mapping) -> str | None:
    """What :func:`unknown_arguments` says of a prior, with the names that the user knows; None of other errors.

    Arguments:
        error: what ``build`` raised.
        cls: the class of the prior.
        settings: of an estimator, by the names that ``build`` gets.
        own: of a partial.
    """
    if not isinstance(error, TypeError):
        return None
    known = named_arguments(cls, 2)
    shown = {argument: name for name, argument in HANDED.items() if argument in settings}
    given = {**{argument: shown.get(argument, argument) for argument in settings}, **dict(zip(own, own, strict=True))}
    problem = unknown_arguments(error, given, known, cls.__name__)
    hint = f". State in {cls.__name__}.takes which settings of estimators it takes"
    return f"{problem}{hint}" if problem and {*settings} - {*known, *own} else problem


@torch.no_grad()
def try_prior(vae: VAE | SingleCellVAE) -> None:
    """Raise ``ValueError`` unless the prior makes p(z) with a weight for each component."""
    prior = vae.prior
    try:
        with inference_mode(vae):
            found = tuple(prior(vae.encoder).weights.shape)
    except Exception as error:  # whatever a prior of the user's own may raise
        raise ValueError(f"{type(prior).__name__} can't make p(z) with this encoder: {one_line(error)}") from error
    if found != (prior.n_components,):
        raise ValueError(f"{type(prior).__name__} makes p(z) with weights {found}, expected ({prior.n_components},)")
