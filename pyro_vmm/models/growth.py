"""Add batches or components to a trained model of cells; its own parameters stay fixed.

Source: Lotfollahi et al., Mapping single-cell data to reference atlases by transfer learning, Nature Biotechnology
40:121, 2022 (scArches): only the weights of the new batches in the first layers are trained.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from pyro_vmm.models.single_cell import SingleCellVAE
from pyro_vmm.networks import CellFeatures, WidenedLinear
from pyro_vmm.priors import Places
from pyro_vmm.priors.pseudo_inputs import CellPseudoInputs, PseudoInputs
from pyro_vmm.runtime.cell_layout import CellLayout


def with_batches(vae: SingleCellVAE, n: int, library: tuple[Tensor, Tensor] | None = None) -> SingleCellVAE:
    """A copy that takes cells of n further batches; only the parameters of these batches require a gradient.

    Cells of known batches get the same numbers, bit for bit. A new batch starts at the mean of the known ones.

    Arguments:
        vae: a trained model, left unchanged.
        n: the number of new batches.
        library: mean and variance of the logarithms of library sizes in each new batch, (n,) each, where they are
            latent.

    Raises:
        ValueError: the prior's pseudo-inputs have no covariates of their own, and so no batches; or library sizes are
            latent and ``library`` is None.
    """
    grown = copy.deepcopy(vae).requires_grad_(False)
    if any(isinstance(each, PseudoInputs) and not isinstance(each, CellPseudoInputs) for each in grown.modules()):
        raise ValueError("the prior has pseudo-inputs of the reference's columns alone, and takes no new batches")
    grown.held = True
    if vae.library is not None and library is None:
        raise ValueError("library=None, expected the moments of each new batch: the library sizes are latent")
    before, layout = vae.layout, vae.layout.with_batches(vae.layout.n_batches + n)
    trained = grown.likelihood.add_batches(layout)
    # The layers of each network, and the number of their inputs before the batch.
    networks = [(cast(nn.Sequential, grown.decoder.body), vae.prior.latent_dim)]
    for body in [grown.encoder.body] + ([] if grown.library is None else [grown.library.encoder]):
        parts = cast(nn.Sequential, body)
        if cast(CellFeatures, parts[0]).covariates:
            networks.append((cast(nn.Sequential, parts[1]), before.n_genes))
    trained += [_widen(layers, start, before.n_batches, n) for layers, start in networks]
    if library is not None and grown.library is not None:
        grown.library.add_batches(*library)
    if grown.balance is not None:
        grown.balance.add_batches(n)
    _lay_out(grown, layout)
    for parameter in trained:
        parameter.requires_grad_(True)
    return grown


def _widen(layers: nn.Sequential, start: int, known: int, n: int) -> nn.Parameter:
    """Give the first layer n inputs after those of the known batches, at ``start``; return the new weights."""
    first = cast(nn.Linear | WidenedLinear, layers[0])
    if isinstance(first, WidenedLinear):
        at, weights = first.start, first.weights(start, known)
    else:
        at, weights = start + known, first.weight[:, start : start + known]
    layers[0] = widened = WidenedLinear(first, at, weights.detach().mean(1, keepdim=True).repeat(1, n))
    return widened.added


def _lay_out(vae: SingleCellVAE, layout: CellLayout) -> None:
    """Set the columns of a cell in all modules."""
    for module in vae.modules():
        if isinstance(getattr(module, "layout", None), CellLayout):
            module.layout = layout  # pyright: ignore[reportArgumentType]
        if isinstance(module, CellFeatures) and module.covariates:
            module.width = layout.n_genes + layout.n_covariates


@torch.no_grad()
def with_components(vae: SingleCellVAE, places: Places, share: Tensor) -> SingleCellVAE:
    """A copy with a further component at each of n places; the old ones change only in their joint weight.

    Arguments:
        vae: a trained model, left unchanged.
        places: where the new components should be.
        share: the weight of each new component over that of all old ones together, (n,).

    Raises:
        NotImplementedError: the prior can't place components.
    """
    grown, n = blank_components(vae, len(share)), vae.prior.n_components
    before = grown.prior.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    slots = torch.arange(n, n + len(share), device=share.device)
    grown.prior.place(places, slots, grown.encoder)
    new = set(grown.prior.component_tensors())
    for name, tensor in grown.prior.state_dict().items():
        held = tensor[:n] if name in new else tensor
        held.copy_(before[name][:n] if name in new else before[name])
    logits = grown.prior.get_parameter("pi_logits")
    logits[n:] = logits[:n].logsumexp(0) + share.log()
    return grown


def blank_components(vae: SingleCellVAE, n: int) -> SingleCellVAE:
    """A copy with n further components, each a copy of the first one."""
    order = torch.cat([torch.arange(vae.prior.n_components), torch.zeros(n, dtype=torch.long)])
    grown = copy.deepcopy(vae)
    grown.prior = grown.prior.rows_of(order.to(vae.prior.origin.device))
    if grown.balance is not None:
        grown.balance = grown.balance.subset(order)
        grown.balance.cells[:, vae.prior.n_components :] = 0
    return grown
