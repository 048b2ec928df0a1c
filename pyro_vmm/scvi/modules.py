"""The prior inside a module of scvi-tools: where it is stored, and how it enters the loss."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from scvi.module import SCANVAE, VAE
from scvi.module.base import BaseModuleClass, LossOutput
from torch import Tensor, nn
from torch.distributions import Normal

from pyro_vmm.distributions import Mixture
from pyro_vmm.models import LatentVariableModel
from pyro_vmm.networks import inference_mode
from pyro_vmm.priors import Prior, StandardNormal
from pyro_vmm.priors.balance import BatchBalance
from pyro_vmm.scvi.cells import Encoder, Layout, posterior
from pyro_vmm.scvi.counts import quick, quick_method

if TYPE_CHECKING:
    # A mixin's methods use those of the class of scvi-tools beside it, whose types need not be there.
    Stock = Any
else:
    Stock = object

#: The names under which losses of modules report the KL divergence of q(z | x) from N(0, I).
KL_KEYS = ("kl_divergence_z", "kl_div_z", "kl_local")
KlWeight = Literal["stock", "elbo"]
KL_WEIGHTS = get_args(KlWeight)
# Methods of scvi-tools' modules that make distributions of counts for the loss.
RECONSTRUCTIONS = ("get_reconstruction_loss", "get_reconstruction_loss_expression")
# The sizes of minibatches, times the weights of a warm-up, whose weights in the loss are kept.
MOST_WEIGHTS = 8


class Weights(NamedTuple):
    """The weights of the KL divergence of z in the loss of M cells, each summed over the cells.

    Arguments:
        stock: that of the stock loss.
        own: that of this prior's KL divergence.
    """

    stock: Tensor
    own: Tensor


class Watch:
    """What a loss leaves for the MAP step after it.

    No attributes of a module: a module with new ones is another, and recorded steps on it are void.

    Attributes:
        density: :meth:`Adapted.density`, if the loss belongs to a training step, else None. ``module.training`` does
            not say so: surgery, and a second training, run in inference mode. It may return more, for the MAP step.
        last: the cells (M, W) of the last such loss, their p(c | z) (M, K), and what else ``density`` returned.
        weights: those of the KL divergence in earlier losses, by what they depend on: M, and scvi-tools'
            ``kl_weight``.
    """

    def __init__(self):
        self.density: Callable[[Tensor, Tensor], tuple[Tensor, ...]] | None = None
        self.last: tuple[Tensor, Tensor, list[Tensor]] | None = None
        self.weights: dict[tuple[int, float], Weights] = {}

    def keep(self, key: tuple[int, float], weights: Weights) -> Weights:
        """Keep weights for later losses, and return them."""
        if len(self.weights) == MOST_WEIGHTS:  # a warm-up has ever new ones
            self.weights.clear()
        self.weights[key] = weights
        return weights

    def stop(self) -> None:
        self.density, self.last = None, None


class HeldPrior(nn.Module):
    """The prior in a module of scvi-tools, as ``module.vmm``; its state is part of the module's.

    Arguments:
        prior: one of :mod:`pyro_vmm.priors`.
        layout: the columns of a packed cell.
        balance: keeps clusters from following batches, or None.
        kl_weight: one of ``KL_WEIGHTS``.

    Attributes:
        cluster_of_component: (K,), numbered from 0.
        trained: the model that is trained instead of the whole prior, see :class:`~pyro_vmm.inference.Elimination`, in
            a tuple; empty outside of training.
        watch: what a loss leaves for the MAP step.
    """

    cluster_of_component: Tensor

    def __init__(self, prior: Prior, layout: Layout, balance: BatchBalance | None, kl_weight: KlWeight = "stock"):
        super().__init__()
        self.prior, self.balance, self.layout, self.kl_weight = prior, balance, layout, kl_weight
        self.register_buffer("cluster_of_component", torch.arange(prior.n_components))
        self.trained: tuple[Adapted, ...] = ()  # a tuple, so that it is no submodule
        self.watch = Watch()

    def rest(self) -> None:
        """Hide the parameters that a MAP step trains from the optimisers of scvi-tools."""
        self._require_gradients(False)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Within the context, let these parameters have gradients."""
        self._require_gradients(True)
        try:
            yield
        finally:
            self.rest()

    def _require_gradients(self, required: bool) -> None:
        if self.prior.trained_by_map:
            for prior in (self.prior, *(model.prior for model in self.trained)):
                prior.requires_grad_(required)


class Adapted(LatentVariableModel):
    """A module of scvi-tools as a model for the package's own inference. A row is a packed cell, (W,)."""

    encoder: Encoder

    def __init__(self, module: BaseModuleClass):
        mixture = module.vmm
        super().__init__(Encoder(module, mixture.layout), nn.Identity(), nn.Identity(), mixture.prior)
        self.balance = mixture.balance

    def network_parameters(self) -> list[nn.Parameter]:
        """None: scvi-tools trains the networks."""
        return []

    def batch(self, x: Tensor) -> Tensor:
        return self.encoder.layout.one_hot_batch(x)

    def p_z(self, cells: Tensor) -> Mixture:
        """The prior of each cell's z: its weights differ between batches if they are balanced."""
        p_z, log_factors = self.trained_prior(), self.log_factors(cells)
        return p_z if log_factors is None else p_z.reweighted(log_factors)

    def density(self, z: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z) of the z (M, D) of cells (M, W), (M,), and p(c | z), (M, K), without gradients."""
        p_z = self.p_z(cells)
        p_z.remember(z)
        log_p = p_z.log_prob(z)
        with torch.no_grad():
            return log_p, p_z.responsibilities(z)


class WithPrior(Stock):
    """A mixin for modules: the loss and its report with the prior that ``self.vmm`` holds.

    The stock loss is not changed; in training its log-density of counts is a quicker one, see
    :mod:`pyro_vmm.scvi.counts`. It reports the KL divergence of q(z | x) from N(0, I). Autograd gives the weight of
    this KL in the loss (warm-up, a mean or a sum over cells) as the derivative of the loss by it. The KL divergence
    from the mixture, estimated by the draw of z that is decoded, replaces it with the same weight.
    """

    vmm: HeldPrior

    def stock_loss(self, *args, **kwargs) -> LossOutput:
        """The loss with N(0, I)."""
        return super().loss(*args, **kwargs)

    def loss_with_prior(
        self, tensors: Mapping[str, Tensor], inference_outputs: Mapping, generative_outputs: Mapping, *args, **kwargs
    ) -> LossOutput:
        """The loss of cells (M, ...)."""
        if isinstance(self.vmm.prior, StandardNormal):
            return super().loss(tensors, inference_outputs, generative_outputs, *args, **kwargs)
        if self._is_quick():
            generative_outputs = {name: quick(value) for name, value in generative_outputs.items()}
        out = self.stock_loss(tensors, inference_outputs, generative_outputs, *args, **kwargs)
        key = kl_key(out)
        before = out.kl_local[key]
        cells, z, watch = self.vmm.layout.pack(tensors), inference_outputs["z"], self.vmm.watch
        log_q = posterior(inference_outputs).log_prob(z).sum(-1)
        if watch.density is None:
            log_p = self._model().p_z(cells).log_prob(z)
        else:
            log_p, responsibilities, *of_map_step = watch.density(z, cells)
            watch.last = cells, responsibilities, of_map_step
        kl = log_q - log_p
        loss = out.loss + self._difference(out, before, kl, tensors, kwargs)
        # MULTIVI without a penalty reports the number 0, of which its ``get_elbo`` makes no mean.
        others = {name: each if torch.is_tensor(each) else torch.zeros_like(kl) for name, each in out.kl_local.items()}
        return replace(out, loss=loss, kl_local={**others, key: kl})

    def _is_quick(self) -> bool:
        """Whether scvi-tools' distributions of counts have quick log-densities now: in a training step, on a CPU."""
        mixture = getattr(self, "vmm", None)  # the contract tries modules that have none yet
        return mixture is not None and mixture.watch.density is not None and self.device.type == "cpu"

    def _model(self) -> Adapted:
        """This module as a model with the prior, or the part of it, that is in training."""
        return self.vmm.trained[0] if self.vmm.trained else Adapted(self)

    def _difference(self, out: LossOutput, before: Tensor, kl: Tensor, tensors: Mapping, kwargs: Mapping) -> Tensor:
        """The change of the loss, (), when one KL replaces the other."""
        kl_weight, watch = kwargs.get("kl_weight", 1.0), self.vmm.watch
        key = (before.shape[-1], kl_weight)
        if torch.is_grad_enabled() and before.requires_grad:
            stock, own = self._weights(out, before, kl_weight)
            watch.keep(key, Weights(stock.detach().sum(), own.detach().sum()))
            return (own * kl - stock * before).sum()
        found = watch.weights.get(key) or watch.keep(key, self._weights_without_gradients(tensors, kwargs))
        return found.own * kl.mean() - found.stock * before.mean()

    def _weights(self, out: LossOutput, before: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
        """The weights in a loss of each cell's KL, (M,): that of the stock loss, and this prior's."""
        (stock,) = torch.autograd.grad(out.loss, before, retain_graph=True)
        if self.vmm.kl_weight == "stock":
            return stock, stock
        reconstruction = next(each for each in out.reconstruction_loss.values() if each.requires_grad)
        return stock, kl_weight * torch.autograd.grad(out.loss, reconstruction, retain_graph=True)[0]

    def _weights_without_gradients(self, tensors: Mapping[str, Tensor], kwargs: Mapping) -> Weights:
        """The weights, where the loss has no gradients, from another pass of the cells that has."""
        # scANVI's labels have no part in these weights.
        kwargs = {name: value for name, value in kwargs.items() if name != "labelled_tensors"}
        # The pass changes neither statistics nor random numbers. Clones: those of inference mode have no gradients.
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices), inference_mode(self):
            cells = {name: _leaf(value) for name, value in tensors.items()}
            outputs = self(cells, compute_loss=False)
            out = self.stock_loss(cells, *outputs, **kwargs)
            before, kl_weight = out.kl_local[kl_key(out)], kwargs.get("kl_weight", 1.0)
            stock, own = self._weights(out, before, kl_weight)
            return Weights(stock.detach().sum(), own.detach().sum())


class WithMarginal(WithPrior):
    """A mixin for modules that also estimate log p(x)."""

    def marginal_ll(self, tensors: Mapping[str, Tensor], *args, **kwargs):
        """The stock estimate of log p(x) by importance weighting, with the prior that the loss has.

        Its weights are balanced between batches, as those in the ELBO are.
        """
        if isinstance(self.vmm.prior, StandardNormal):
            return super().marginal_ll(tensors, *args, **kwargs)
        with self._standing_for(self._model().p_z(self.vmm.layout.pack(tensors))):
            return super().marginal_ll(tensors, *args, **kwargs)

    @contextmanager
    def _standing_for(self, p_z: Mixture) -> Iterator[None]:
        """Make stock code that computes log N(z; 0, I) - log q(z | x) return log p(z) - log q(z | x)."""
        inference = self.inference

        def with_other_posterior(*args, **kwargs) -> dict:
            outputs = inference(*args, **kwargs)
            return {**outputs, "qz": _Posterior(posterior(outputs), p_z)}

        self.inference = with_other_posterior
        try:
            yield
        finally:
            del self.inference


class _Posterior(Normal):
    """q(z | x) whose log-densities, (..., D), sum to log q(z | x) - log p(z) + log N(z; 0, I)."""

    def __init__(self, q_z: Normal, p_z: Mixture):
        super().__init__(q_z.loc, q_z.scale, validate_args=False)
        self.p_z = p_z

    def log_prob(self, value: Tensor) -> Tensor:
        standard = Normal(torch.zeros_like(self.loc), torch.ones_like(self.scale)).log_prob(value)
        by_dimension = self.p_z.log_prob(value).unsqueeze(-1) / value.shape[-1]
        return super().log_prob(value) - by_dimension + standard


class WithPriorOverLabels(WithPrior):
    """A mixin for scANVI's module: the prior replaces everything above z1, p(z1 | z2, y) p(z2) p(y).

    scVI's loss and that of the classifier of z1 remain.
    """

    def stock_loss(
        self,
        tensors,
        inference_outputs,
        generative_outputs,
        kl_weight=1.0,
        labelled_tensors=None,
        classification_ratio=0.0,
    ) -> LossOutput:
        out = VAE.loss(self, tensors, inference_outputs, generative_outputs, kl_weight=kl_weight)
        if labelled_tensors is None:
            return out
        loss, labels, logits = self.classification_loss(labelled_tensors)
        total = out.loss + classification_ratio * loss
        return replace(out, loss=total, classification_loss=loss, true_labels=labels, logits=logits)


def _leaf(value):
    """A clone that takes gradients, if it is a tensor of floating-point numbers."""
    if not torch.is_tensor(value):
        return value
    return value.clone().requires_grad_(value.is_floating_point())


def kl_key(out: LossOutput) -> str:
    """The name under which the loss reports the KL divergence of z; ``TypeError`` if it reports none."""
    # Not `next` without a default: Lightning takes a StopIteration for the end of the data.
    key = next((key for key in KL_KEYS if key in out.kl_local), None)
    if key is None:
        raise TypeError(f"the loss reports {sorted(out.kl_local)}, expected one of {KL_KEYS}")
    return key


def _quick_in_training(cls: type, name: str) -> Callable | None:
    """A method that makes scvi-tools' distributions of counts, with quick ones while a module trains; None for none."""
    stock, quicker = getattr(cls, name, None), quick_method(cls, name)
    if stock is None or quicker is None:
        return None

    @functools.wraps(stock)
    def method(self, *args, **kwargs):
        return (quicker if self._is_quick() else stock)(self, *args, **kwargs)

    return method


def _blank(cls: type[BaseModuleClass]) -> BaseModuleClass:
    """A module of :func:`module_class` without state, for pickle, which knows classes by their names."""
    return object.__new__(module_class(cls))


@functools.cache
def module_class(cls: type[BaseModuleClass]) -> type[BaseModuleClass]:
    """A subclass of a class of modules with the same name, whose loss has the prior that ``vmm`` holds."""
    mixins = (WithPriorOverLabels,) if issubclass(cls, SCANVAE) else ()
    mixins += (WithMarginal,) if hasattr(cls, "marginal_ll") else (WithPrior,)

    @functools.wraps(cls.loss)  # training plans inspect the names of its arguments
    def loss(self, *args, **kwargs):
        return self.loss_with_prior(*args, **kwargs)

    def __reduce_ex__(self, protocol):
        return _blank, (cls,), self.__dict__

    members = {"loss": loss, "__reduce_ex__": __reduce_ex__, "__module__": cls.__module__, "__doc__": cls.__doc__}
    members |= {name: each for name in RECONSTRUCTIONS if (each := _quick_in_training(cls, name))}
    return type(cls.__name__, (*mixins, cls), members)
