"""Checks of the state from which a trainer continues."""

import torch

from pyro_vmm.inference.config import RATES
from pyro_vmm.models import LatentVariableModel
from pyro_vmm.runtime.entries import Entries

#: Some columns of the history, which every epoch has.
COLUMNS = ("epoch", "seconds", "elbo", "val_elbo")
#: Adam's settings other than its learning rate, in every version of torch.
ADAM = ("betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused")
#: What error messages call the state.
PLACE = "the state to continue from"


def check_state(state: dict, vae: LatentVariableModel) -> None:
    """Raise ``ValueError`` unless training can continue from a state; optimisers check theirs when they load it.

    Arguments:
        state: the result of :meth:`~pyro_vmm.inference.Trainer.state_dict`.
        vae: the model.
    """
    entries = Entries(state, PLACE)
    check_model(entries, "model", vae)
    elimination = entries.part("elimination")
    kept = elimination.positions("kept", vae.prior.n_components)
    if (kept.diff() < 1).any():
        raise elimination.wrong("kept should rise")
    if (elimination.tensor("below", like=kept) < 0).any():
        raise elimination.wrong("below should hold no negative number")
    history = entries.parts("history")
    check_random_numbers(entries, begun=len(history) > 0)
    for i, row in enumerate(history, 1):
        row.whole("epoch", i, i)
        for name in {*COLUMNS, *row.content, *history[0].content}:
            row.number(name)
    if "weights" in entries:
        check_weights(entries, "weights", len(history), vae.prior.n_components)
    best = entries.part("best")
    epoch = best.whole("epoch", 0, len(history))
    best.number("value")
    if epoch and best.number("value") not in history[epoch - 1].content.values():
        raise best.wrong(f"value is {best.content['value']}, which epoch {epoch} does not have")
    if epoch or best.content.get("model") is not None:
        check_model(best, "model", vae)
    if "diverged" in entries:  # old checkpoints have neither
        entries.get("diverged", bool)
    if "rates" in entries:
        check_rates(entries, "rates")


def check_model(entries: Entries, name: str, module: torch.nn.Module) -> None:
    """Raise ``ValueError`` unless an entry holds a module's parameters and buffers, finite where the module's are."""
    own = module.state_dict()
    entries.state(name, own, finite=[each for each, value in own.items() if value.isfinite().all()])


def check_weights(entries: Entries, name: str, n_epochs: int, n_components: int) -> torch.Tensor:
    """Weights of components by epoch, NaN where they are unknown; ``ValueError`` for other values."""
    weights = entries.tensor(name, like=torch.empty(n_epochs, n_components, dtype=torch.float32))
    if not (weights.isnan() | ((weights >= 0) & (weights <= 1 + 1e-4))).all():
        raise entries.wrong(f"{name} should hold numbers from 0 to 1")
    return weights


def check_rates(entries: Entries, name: str) -> list[dict]:
    """A record of learning rates, each from some epoch on; ``ValueError`` for other values."""
    record = entries.parts(name, least=1)
    for rates in record:
        rates.whole("epoch", 1)
        for rate in RATES:
            if rate not in rates or rates.content[rate] is not None:
                rates.positive(rate)
    return [rates.content for rates in record]


def check_random_numbers(entries: Entries, begun: bool = True) -> None:
    """Raise ``ValueError`` unless there are generator states of the rows' order and, once training began, of draws."""
    states = [(entries, "order")]
    if begun or entries.content.get("rng", {}) is not None:
        states.append((entries.part("rng"), "cpu"))
    for holder, name in states:
        try:
            torch.Generator().set_state(holder.get(name, torch.Tensor))
        except (RuntimeError, TypeError) as error:
            raise holder.wrong(f"{name} is not a state of random numbers") from error


def check_optimizer(entries: Entries, name: str, optimizer: torch.optim.Optimizer) -> None:
    """Raise ``ValueError`` unless an entry holds Adam's state for this optimiser's parameters."""
    found, own = entries.part(name), optimizer.state_dict()
    groups = found.parts("param_groups")
    if len(groups) != len(own["param_groups"]):
        raise found.wrong(f"there are {len(groups)} groups of parameters, expected {len(own['param_groups'])}")
    for group, like in zip(groups, own["param_groups"], strict=True):
        if group.each("params", int, "whole numbers") != like["params"]:
            raise group.wrong(f"there are {len(group.content['params'])} parameters, expected {len(like['params'])}")
        group.positive("lr")
        for setting in like.keys() - {"lr", "params"}:
            if setting not in group and setting not in ADAM:
                continue  # of a later version of torch
            value = group.content.get(setting)
            if type(value) is not type(like[setting]) or value != like[setting]:
                raise group.wrong(f"{setting} should be {like[setting]}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    memory = Entries(found.get("state", dict), f"{found.place}: state")
    if not memory.content.keys() <= {*range(len(parameters))}:
        raise memory.wrong(f"it has other parameters than the {len(parameters)} of the model")
    for position in memory.content:
        of_one = memory.part(position)
        of_one.floats("step", shape=())
        if not of_one.tensor("exp_avg", like=parameters[position]).isfinite().all():
            raise of_one.wrong("exp_avg is not finite")
        if not (of_one.tensor("exp_avg_sq", like=parameters[position]) >= 0).all():  # it may overflow
            raise of_one.wrong("exp_avg_sq should hold no negative number and no NaN")
