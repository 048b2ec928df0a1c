"""Check whether the prior can replace N(0, I) in a model of scvi-tools."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from scvi.model.base import BaseModelClass
from scvi.module import SCANVAE
from torch.distributions import Normal, kl_divergence

from pyro_vmm.runtime.settings import defaults
from pyro_vmm.scvi.cells import MEASURED, posterior
from pyro_vmm.scvi.modules import kl_key, module_class
from pyro_vmm.scvi.settings import PriorSettings, TrainingSettings

# The number of cells that a model is tried on.
FEW = 16
# The relative error allowed of the reported KL: rounding in float32.
TOLERANCE = 1e-3
METHODS_USED = ("_train_runner_cls", "get_latent_representation", "train")


def check_class(cls: type) -> None:
    """Raise ``TypeError`` if a class is no model, lacks a method that is used, or has an argument with our names."""
    if not (isinstance(cls, type) and issubclass(cls, BaseModelClass)):
        raise TypeError(f"{cls!r} should be a model of scvi-tools, a subclass of BaseModelClass")
    lacks = [name for name in METHODS_USED if not hasattr(cls, name)]
    if lacks:
        raise TypeError(f"{cls.__name__} can't have the prior: it has no {', '.join(lacks)}")
    accepted = inspect.signature(cls.get_latent_representation).parameters.values()
    if not any(each.name == "return_dist" or each.kind is each.VAR_KEYWORD for each in accepted):
        raise TypeError(f"{cls.__name__} can't have the prior: its get_latent_representation has no return_dist")
    for function, group in ((cls.__init__, PriorSettings), (cls.train, TrainingSettings)):
        both = [name for name in inspect.signature(function).parameters if name in defaults(group)]
        if both:
            raise TypeError(f"{cls.__name__} can't have the prior: {', '.join(both)} mean something else there")


def check_model(model: BaseModelClass, tensors: Mapping[str, Any]) -> None:
    """Try a new stock model on a few cells, a dict of tensors (M, ...). Raise ``TypeError`` unless

    - q(z | x) is a diagonal normal (M, D), and the decoder takes z (M, D);
    - the loss reports the KL divergence of q(z | x) from N(0, I) under one of the known names;
    - the loss depends on the reported value, with the same positive weight for each cell.
    """
    name = type(model).__name__
    module = copy.deepcopy(model.module).eval()
    if isinstance(module, SCANVAE) and type(module).loss is not SCANVAE.loss:
        raise TypeError(f"{name} can't have the prior: it has another loss than SCANVI, part of which is replaced")
    module.__class__ = module_class(type(module))
    n = len(next(tensors[key] for key in MEASURED if key in tensors))
    with torch.random.fork_rng():  # the check must not change the random numbers of the fit
        inference_outputs, generative_outputs = module(tensors, compute_loss=False)
        out = module.stock_loss(tensors, inference_outputs, generative_outputs)
    try:
        q_z, key = posterior(inference_outputs), kl_key(out)
    except TypeError as error:
        raise TypeError(f"{name} can't have the prior: {error}") from None
    d = module.n_latent
    shapes = {"q(z | x)": q_z.loc.shape, "z": getattr(inference_outputs.get("z"), "shape", None)}
    for what, shape in shapes.items():
        if shape != (n, d):
            raise TypeError(f"{name} can't have the prior: {what} has shape {shape}, expected {(n, d)}")
    true, reported = kl_divergence(q_z, Normal(0.0, 1.0)).sum(-1), out.kl_local[key]
    if reported.shape != true.shape or not torch.allclose(reported, true, rtol=TOLERANCE, atol=TOLERANCE):
        raise TypeError(
            f"{name} can't have the prior: its loss reports {key!r}, which is not the KL divergence of q(z | x) from "
            "N(0, I)"
        )
    (weight,) = torch.autograd.grad(out.loss, reported, allow_unused=True)
    if weight is None or not (weight > 0).all() or not torch.allclose(weight, weight[0].expand(n)):
        raise TypeError(f"{name} can't have the prior: its loss does not weigh {key!r} equally for all cells")
