"""The batch balance: its weights by hand, its place in the model, and what it is for."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from anndata import AnnData
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy.special import entr
from torch import nn
from torch.nn import functional as F

from pyro_vmm import SingleCellVMM
from pyro_vmm.data import load_cells, select_genes
from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.inference import Trainer, TrainingConfig
from pyro_vmm.likelihoods import CELL_LIKELIHOODS
from pyro_vmm.models import SingleCellVAE
from pyro_vmm.models.elbo import Elbo
from pyro_vmm.networks import CellDecoder, CellFeatures, GaussianEncoder, cell_mlp
from pyro_vmm.priors import VampMixture
from pyro_vmm.priors.balance import SMOOTHING, BatchBalance
from pyro_vmm.priors.pseudo_inputs import CellPseudoInputs
from pyro_vmm.runtime.cell_layout import CellLayout

G, B, D, K, M = 6, 2, 2, 3, 8
LAYOUT = CellLayout(G, (B,))


def balance(cells, strength: float = 2.0) -> BatchBalance:
    module = BatchBalance(strength, *np.shape(cells)).double()
    module.cells.copy_(torch.tensor(cells))
    return module


def cells(rows: int = M) -> torch.Tensor:
    counts = torch.poisson(torch.full((rows, G), 4.0)) + 1
    return torch.cat([counts, F.one_hot(torch.arange(rows) % B, B), counts.sum(-1, keepdim=True)], -1)


def build(observed=((5.0, 1.0, 0.0), (0.0, 2.0, 9.0))) -> SingleCellVAE:
    likelihood = CELL_LIKELIHOODS["nb"](LAYOUT)
    features = CellFeatures(LAYOUT)
    encoder = GaussianEncoder(nn.Sequential(features, cell_mlp(features.width, (5,))), 5, D, "diagonal")
    prior = VampMixture(D, CellPseudoInputs(LAYOUT, cells(K), "uniform"))
    decoder = CellDecoder(LAYOUT, D, (5,))
    return SingleCellVAE(LAYOUT, encoder, decoder, likelihood, prior, balance=balance(observed)).double().eval()


def test_factors_by_hand():
    table = np.array([[30.0, 0.0, 10.0], [5.0, 20.0, 10.0]])
    overall = table.sum(0) + 1
    overall /= overall.sum()
    share = table.sum(1, keepdims=True) / table.sum()
    of_batch = table + share + SMOOTHING * overall
    of_batch /= of_batch.sum(1, keepdims=True)
    expected = 3.0 * np.log(overall / of_batch)
    np.testing.assert_allclose(balance(table, 3.0)(torch.eye(2)).numpy(), expected)
    assert expected[0, 0] < 0 < expected[1, 0], "the batch that has more of a component pays"


def test_before_anything_is_observed_all_is_as_without():
    torch.testing.assert_close(balance(np.zeros((B, K)))(torch.eye(B)), torch.zeros(B, K))


@pytest.mark.parametrize("n_batches", [2, 20])
def test_a_component_without_cells_has_its_own_weight_in_each_batch(n_batches):
    table = np.zeros((n_batches, 6))
    table[:, :4] = 500.0 * (1 + np.arange(n_batches)[:, None])
    factors = balance(table)(torch.eye(n_batches))
    torch.testing.assert_close(factors, torch.zeros(n_batches, 6))


def test_equal_shares_cost_nothing_whatever_the_sizes_of_batches():
    factors = balance([[20.0, 10.0, 70.0], [200.0, 100.0, 700.0]])(torch.eye(2))
    assert factors.abs().max() < 0.1


def test_observed_cells_fade():
    module = BatchBalance(1.0, 2, 2).double()
    batch, first = torch.tensor([[1.0, 0.0]] * 100), torch.tensor([[0.9, 0.1]] * 100)
    module.observe(batch, first)
    torch.testing.assert_close(module.cells, torch.tensor([[90.0, 10.0], [0.0, 0.0]]))
    for _ in range(2000):
        module.observe(batch, first.flip(-1))
    torch.testing.assert_close(module.cells[0], torch.tensor([0.1, 0.9]) * module.memory)


def test_reweighted_mixture_by_hand():
    tril = torch.eye(D).expand(K, D, D) * torch.tensor([1.0, 2.0, 0.5])[:, None, None]
    pi, loc = torch.tensor([0.5, 0.3, 0.2]), torch.randn(K, D)
    mixture = MixtureOfGaussians.from_precision(pi.log(), loc, tril)
    z, factors = torch.randn(M, D), torch.rand(M, K)
    weights = pi * factors / (pi * factors).sum(-1, keepdim=True)
    components = dist.MultivariateNormal(loc, precision_matrix=tril @ tril.mT)
    expected = dist.MixtureSameFamily(dist.Categorical(weights), components.expand((M, K))).log_prob(z)
    reweighted = mixture.reweighted(factors.log())
    torch.testing.assert_close(reweighted.log_prob(z), expected)
    assert reweighted.batch_shape == (M,)


def test_model_has_the_weights_of_the_cells_batch():
    vae, x = build(), cells()
    p_z = vae.prior(vae.encoder)
    with poutine.enum(first_available_dim=-2):
        trace = poutine.trace(vae.model).get_trace(x, p_z)
    expected = (p_z.log_weights + vae.balance.cells.new_tensor(vae.balance(torch.eye(B)).tolist())).log_softmax(-1)
    torch.testing.assert_close(trace.nodes["c"]["fn"].logits, expected[torch.arange(M) % B])


@pytest.mark.parametrize("whole", [False, True], ids=["given p(z)", "whole hierarchy"])
def test_elbo_is_pyros(whole):
    vae, x = build(), cells()
    p_z = None if whole else vae.prior(vae.encoder)
    losses = []
    for elbo in (Elbo(), TraceEnum_ELBO(max_plate_nesting=1)):
        pyro.set_rng_seed(1)
        losses.append(elbo.differentiable_loss(vae.model, vae.guide, x, p_z))
    torch.testing.assert_close(*losses)


def test_map_objective_has_the_weights_too():
    vae, x = build(), cells()
    z = torch.randn(M, D)
    centres = vae.prior.centres(vae.encoder)
    arguments = (vae.prior.model, vae.prior.guide, z, vae.encoder, centres, M)
    without, balanced = Elbo().loss(*arguments), Elbo().loss(*arguments, vae.log_factors(x))
    p_z = vae.prior.clustering(vae.encoder)
    expected = p_z.reweighted(vae.log_factors(x)).log_prob(z).sum() - p_z.log_prob(z).sum()
    assert without - balanced == pytest.approx(expected.item())


def test_training_observes_the_batches():
    vae, x = build(observed=np.zeros((B, K))).train(), cells(40)
    Trainer(vae, TrainingConfig(epochs=1, batch_size=10)).fit(x, progress=False)
    assert vae.balance.cells.sum(-1).tolist() == pytest.approx([20, 20], rel=0.05)


def test_reorder_takes_the_table_along():
    vae = build()
    before = vae.log_factors(cells(B))
    vae.reorder(torch.tensor([2, 0, 1]))
    torch.testing.assert_close(vae.log_factors(cells(B)), before[:, [2, 0, 1]])


def test_cells_are_drawn_to_components_that_lack_their_batch():
    tril = torch.eye(1).expand(2, 1, 1)
    mixture = MixtureOfGaussians.from_precision(torch.tensor([0.5, 0.5]).log(), torch.tensor([[-1.0], [1.0]]), tril)
    z = torch.zeros(2, 1, requires_grad=True)
    factors = balance([[100.0, 0.0], [0.0, 100.0]])(torch.eye(2))
    (pull,) = torch.autograd.grad(mixture.reweighted(factors).log_prob(z).sum(), z)
    assert pull[0] > 0.9 and pull[1] < -0.9, "half way between the two, to where the other batch is"


def mixing(model: SingleCellVMM, adata: AnnData) -> float:
    """The entropy of the batches within clusters, on average over cells, as a share of the batches' own entropy."""
    shares = model.batch_shares_.to_numpy()
    entropies = entr(shares).sum(1)
    return float(np.bincount(model.labels_) / len(adata) @ entropies[:-1] / entropies[-1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # scanpy's own
def test_clusters_hold_both_batches(real_data):
    adata = select_genes(load_cells(real_data("cells/kang_ifnb_2800.h5ad")), 2000, "batch")

    def median(**settings) -> float:
        """Of three seeds: in one such short fit of six a kind of cells is in two clusters, one for each batch."""
        fits = (SingleCellVMM("batch", epochs=60, random_state=seed, **settings).fit(adata) for seed in range(3))
        return float(np.median([mixing(model, adata) for model in fits]))

    balanced, without = median(), median(batch_balance=0)
    assert balanced > 0.95 and without < 0.85
