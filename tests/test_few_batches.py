"""Pseudo-cells that a training step encodes in some of many batches: an unbiased estimate, and only in training."""

import numpy as np
import pytest
import torch
from anndata import AnnData
from torch import nn
from torch.distributions import Normal

from pyro_vmm import SingleCellVMM
from pyro_vmm.priors import pseudo_inputs
from pyro_vmm.priors.pseudo_inputs import FEW_BATCHES, CellPseudoInputs, encoded_once, few_batches
from pyro_vmm.runtime import operations
from pyro_vmm.runtime.cell_layout import CellLayout

G, D, K, B = 5, 2, 3, 7


class Batchwise(nn.Module):
    """q(z | x), whose mean and variance depend on the batch."""

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.weight = torch.randn(G + B, 2 * D, generator=random, dtype=torch.float64)

    def forward(self, x):
        loc, log_scale = (x @ self.weight).chunk(2, -1)
        return Normal(loc, log_scale.exp())


@pytest.fixture
def pseudo_cells():
    random = torch.Generator().manual_seed(1)
    counts = torch.rand(K, G + B, generator=random, dtype=torch.float64)
    return CellPseudoInputs(CellLayout(G, (B,)), counts, "averaged")


def moments(centres):
    return torch.cat([centres.loc[..., None], centres.tril @ centres.tril.mT], -1)  # (K, D, 1 + D)


def test_some_batches_estimate_the_moments_of_all_without_bias(pseudo_cells):
    encoder, n = Batchwise(), 4000
    torch.manual_seed(0)
    with torch.no_grad():
        exact = moments(pseudo_cells.encode(encoder))
        with few_batches(pseudo_cells):
            found = torch.stack([moments(pseudo_cells.encode(encoder)) for _ in range(n)])
    error = (found.mean(0) - exact).abs() / (found.std(0) / n**0.5)
    assert error.max() < 4.5
    assert found.std(0).min() > 0.01, "the batches should matter, or this tests nothing"


def test_each_pseudo_cell_is_in_other_batches_and_in_none_twice(pseudo_cells):
    torch.manual_seed(0)
    with few_batches(pseudo_cells):
        one, other = pseudo_cells.drawn(B), pseudo_cells.drawn(B)
        rows = pseudo_cells()
    assert one.shape == (FEW_BATCHES, K) and len(rows) == FEW_BATCHES * K
    assert all(len(column.unique()) == FEW_BATCHES for column in one.mT)
    assert not torch.equal(one, other) and not torch.equal(one[:, 0], one[:, 1])
    torch.testing.assert_close(rows[:, G:].sum(1), torch.ones(len(rows)))


@pytest.mark.parametrize("n_batches", [1, FEW_BATCHES])
def test_few_batches_are_all_of_few(n_batches, pseudo_cells):
    before = torch.get_rng_state()
    with few_batches(pseudo_cells):
        found = pseudo_cells.drawn(n_batches)
    assert torch.equal(found, torch.arange(n_batches)[:, None].expand(-1, K))
    assert torch.equal(before, torch.get_rng_state())


def test_the_context_ends(pseudo_cells):
    with pytest.raises(KeyError), few_batches(nn.ModuleList([pseudo_cells])):
        raise KeyError
    assert len(pseudo_cells.drawn(B)) == B


def test_passes_that_share_share_their_batches(pseudo_cells):
    with few_batches(pseudo_cells), encoded_once(pseudo_cells):
        one, other = (pseudo_cells.encode(Batchwise()) for _ in range(2))
    torch.testing.assert_close(one.loc, other.loc, rtol=0, atol=0)


def planted(n: int = 120) -> AnnData:
    random = np.random.default_rng(0)
    kind = random.integers(2, size=n)
    rates = np.random.default_rng(1).gamma(0.5, 8.0, size=(2, G))
    adata = AnnData(random.poisson(rates[kind]).astype(np.float32))
    adata.obs["batch"] = [f"b{i % B}" for i in range(n)]
    return adata


@pytest.fixture
def seen(monkeypatch) -> list[tuple[int, bool]]:
    """How many batches each pass took, and whether it was one of a training step, as in those the encoder trains."""
    found = []
    drawn = pseudo_inputs.InBatches.drawn

    def noting(self, n_batches):
        batches = drawn(self, n_batches)
        found.append((len(batches), torch.is_grad_enabled()))
        return batches

    monkeypatch.setattr(pseudo_inputs.InBatches, "drawn", noting)
    return found


AVERAGED = {"n_components": 4, "latent_dim": D, "pseudo_batch": "averaged"}
SETTINGS = {**AVERAGED, "hidden": (8,), "epochs": 3, "batch_size": 40, "random_state": 0, "device": "cpu"}


@pytest.mark.parametrize("reuse_draws", [False, True])
def test_training_takes_some_and_the_rest_all(seen, reuse_draws):
    model = SingleCellVMM("batch", reuse_draws=reuse_draws, capture=False, **SETTINGS)
    model.fit(planted())
    assert {n for n, training in seen if training} == {FEW_BATCHES}
    assert {n for n, training in seen if not training} >= {B}
    seen.clear()
    model.predict(planted())
    assert {n for n, _ in seen} <= {B}


def test_recorded_steps_draw_the_batches_of_eager_ones(monkeypatch):
    replays, replay = [], operations._Tape.replay
    monkeypatch.setattr(operations._Tape, "replay", lambda *given: replays.append(1) or replay(*given))

    def fitted(capture):
        model = SingleCellVMM("batch", capture=capture, **SETTINGS)
        return model.set_params(epochs=20).fit(planted())

    one, other = fitted("cpu"), fitted(False)
    assert replays
    np.testing.assert_array_equal(one.history_["elbo"], other.history_["elbo"])
    np.testing.assert_array_equal(one.predict_proba(planted()), other.predict_proba(planted()))
