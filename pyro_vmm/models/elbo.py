"""Pyro's enumerated ELBO, with a short cut for the pairs that the two training steps use."""

from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from operator import add
from typing import Any, cast

from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import check_model_guide_match, check_site_shape, check_traceenum_requirements
from torch import Tensor

from pyro_vmm.distributions import Mixture, MixtureComponent

#: A site of a trace. Pyro types it as a ``TypedDict`` of optional keys; those of a sample site are all there.
Site = dict[str, Any]


class Elbo(TraceEnum_ELBO):
    """``TraceEnum_ELBO(max_plate_nesting=1)``, which also keeps the terms of its last evaluation for the history.

    With one plate, indicators enumerated in the model, and reparameterised draws in the guide, the ELBO is a plain sum
    of log-densities with one ``logsumexp`` over the indicators. This class then computes that sum, which is faster than
    the tensor contractions of the general case. For any other pair it computes Pyro's, from the same run of the pair.

    Attributes:
        log_likelihood: the sum of log p(x | z) over rows, and over their changed copies if there are any, ().
        z: the guide's draws, (M, D).
        log_components: the log-densities of z under the components of its prior, (K, M); None if the model did not
            enumerate them.
    """

    # Both are unset before the first evaluation.
    log_likelihood: Tensor
    z: Tensor

    def __init__(self):
        # Without max_plate_nesting Pyro runs the pair twice, which moves the random numbers and BatchNorm's statistics.
        super().__init__(max_plate_nesting=1, strict_enumeration_warning=False)
        self.log_components: Tensor | None = None

    def differentiable_loss(self, model: Callable, guide: Callable, *args, **kwargs) -> Tensor:
        """Minus the ELBO, a sum over rows, ()."""
        guide_trace = poutine.trace(poutine.enum(guide, first_available_dim=-2)).get_trace(*args, **kwargs)
        if any(site["infer"].get("enumerate") == "sequential" for site in _sample_sites(guide_trace)):
            return super().differentiable_loss(model, guide, *args, **kwargs)  # which runs the pair for each value
        # Its dimensions of enumeration are left of the guide's.
        replayed = poutine.replay(poutine.enum(model), trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        _score(guide_trace)
        _score(model_trace)
        self._keep(model_trace, guide_trace)
        if all(map(_is_simple, _sample_sites(guide_trace))) and _is_one_sum(model_trace):
            return cast(Tensor, _sum(guide_trace) - _sum(model_trace))  # there are sample sites
        return -_contracted(model_trace, guide_trace)

    def loss(self, model: Callable, guide: Callable, *args, **kwargs) -> float:
        """Minus the ELBO, a sum over rows, as a number."""
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def responsibilities(self, p_z: Mixture) -> Tensor:
        """p(c | z) of the last draws, (M, K)."""
        if self.log_components is None:
            return p_z.responsibilities(self.z)
        return (self.log_components.mT + p_z.log_weights).softmax(-1)

    def _get_trace(self, model, guide, args, kwargs):
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        self._keep(model_trace, guide_trace)
        return model_trace, guide_trace

    def _keep(self, model_trace: Trace, guide_trace: Trace) -> None:
        if "x" in model_trace and "z" in guide_trace:
            z = sites(model_trace)["z"]
            observed = [sites(model_trace)[name] for name in ("x", "x_changed") if name in model_trace]
            terms = [scale_and_mask(x["unscaled_log_prob"], x["scale"], x["mask"]).sum() for x in observed]
            self.log_likelihood = reduce(add, terms).detach()
            self.z = z["value"].detach()
            log_prob = z["unscaled_log_prob"].detach()
            enumerated = isinstance(z["fn"], MixtureComponent) and z["fn"].enumerated and log_prob.dim() == 2
            self.log_components = log_prob if enumerated else None


def sites(trace: Trace) -> Mapping[str, Site]:
    """The sites of a trace by name."""
    return cast(Mapping[str, Site], trace.nodes)


def _sample_sites(trace: Trace) -> Iterator[Site]:
    return (site for site in sites(trace).values() if is_sampled(site))


def is_sampled(site: Site) -> bool:
    """Whether a site is a random variable, given or drawn, rather than the subsample of a plate."""
    return site["type"] == "sample" and not site_is_subsample(cast(Message, site))


def _is_simple(site: Site) -> bool:
    """Neither enumerated nor in need of a score-function estimator."""
    return not site["infer"].get("enumerate") and (site["is_observed"] or site["fn"].has_rsample)


def _score(trace: Trace) -> None:
    """Compute the log-density of each site that counts."""
    for site in _scored(trace):
        site["log_prob"] = site["unscaled_log_prob"] = site["fn"].log_prob(site["value"])
        if is_validation_enabled():
            check_site_shape(cast(Message, site), max_plate_nesting=1)


def _scored(trace: Trace) -> Iterator[Site]:
    return (site for site in _sample_sites(trace) if site["mask"] is not False)


def _is_one_sum(trace: Trace) -> bool:
    """Whether all that was enumerated, and what depends on it, has the rows of one plate, none of them masked."""
    enumerated = [site for site in _scored(trace) if site["log_prob"].dim() > 1]
    plates = {tuple((each.name, each.size) for each in site["cond_indep_stack"]) for site in enumerated}
    return all(map(len, plates)) and len(plates) <= 1 and not any(isinstance(s["mask"], Tensor) for s in enumerated)


def _contracted(model_trace: Trace, guide_trace: Trace) -> Tensor:
    """The ELBO of any pair, (), as ``TraceEnum_ELBO`` computes it from traces."""
    if is_validation_enabled():
        check_model_guide_match(model_trace, guide_trace, 1)
        check_traceenum_requirements(model_trace, guide_trace)
    for site in (*_scored(model_trace), *_scored(guide_trace)):
        del site["log_prob"]  # without scale and mask, which Pyro's has
    model_trace, guide_trace = map(prune_subsample_sites, (model_trace, guide_trace))
    model_trace.compute_log_prob()
    guide_trace.compute_score_parts()
    guide_trace.pack_tensors()
    model_trace.pack_tensors(guide_trace.plate_to_symbol)
    return cast(Tensor, _compute_dice_elbo(model_trace, guide_trace))


def _sum(trace: Trace) -> Tensor | float:
    """The log-densities of a trace, summed over rows, and over the values (K, M) of what was enumerated."""
    total, joint, scales = 0.0, [], set()
    for site in _scored(trace):
        log_prob = site["log_prob"]
        if log_prob.dim() > 1:
            joint.append(scale_and_mask(log_prob, mask=site["mask"]))
            scales.add(site["scale"])
        else:
            total = total + scale_and_mask(log_prob, site["scale"], site["mask"]).sum()
    if joint:
        if len(scales) > 1:
            raise ValueError(
                f"enumerated sites and those that depend on them are scaled by {scales}, expected one scale"
            )
        # A sum that starts at zero would have the memory layout (K, M) instead of (M, K).
        total = total + scales.pop() * reduce(add, joint).flatten(end_dim=-2).logsumexp(0).sum()
    return total
