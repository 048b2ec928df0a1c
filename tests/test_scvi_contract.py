"""What each class of scvi-tools with the prior has to do: the loss, the two steps, files, annotation."""

import copy
import warnings

import numpy as np
import pytest
import torch
from scvi_common import TRAIN, adapted, data, float32, make, scvi  # noqa: F401  a fixture among them
from torch import distributions as dist

from pyro_vmm.scvi import contract
from pyro_vmm.scvi.cells import Cells, Encoder, posterior
from pyro_vmm.scvi.modules import Adapted, kl_key

pytestmark = pytest.mark.filterwarnings("ignore")  # those of lightning
K = 6
every_class = pytest.mark.parametrize("name", adapted.STOCK)


@pytest.fixture(scope="module")
def trained() -> dict:
    """A model of each class after two epochs, with its first cells, made when it is asked for."""

    class Models(dict):
        def __missing__(self, name):
            torch.set_default_dtype(torch.float32)
            self[name] = make(getattr(adapted, name), n_components=K)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self[name].train(max_epochs=2, **TRAIN)
            return self[name]

    return Models()


def some(model, indices: np.ndarray) -> dict:
    return next(iter(model._make_data_loader(model.adata, indices=indices, batch_size=len(indices))))


def by_hand(model, tensors: dict, z: torch.Tensor, q_z: dist.Normal) -> torch.Tensor:
    """log q(z | x) - log p(z), the mixture by torch.distributions, q(mu) averaged over batches by draws' moments."""
    mixture, module = model.module.vmm, model.module
    encoder, pseudo = Encoder(module, mixture.layout), mixture.prior.pseudo_inputs
    cells = torch.cat([pseudo.u.clamp(min=0) if mixture.layout.counts else pseudo.u, pseudo.held], -1)
    in_batches = [cells] if pseudo.n_batches == 1 else [mixture.layout.in_batch(cells, b) for b in range(2)]
    q_mu = [encoder(each) for each in in_batches]
    loc = torch.stack([q.loc for q in q_mu])
    middle = loc.mean(0)
    covariance = torch.diag_embed(torch.stack([q.variance for q in q_mu]).mean(0))
    covariance = covariance + torch.einsum("bki,bkj->kij", loc - middle, loc - middle) / len(loc)
    precision = mixture.prior.precision_tril @ mixture.prior.precision_tril.mT
    components = dist.MultivariateNormal(middle, torch.linalg.inv(precision) + covariance)
    logits = mixture.prior.pi_logits.expand(len(z), -1)
    if mixture.balance is not None:
        logits = logits + mixture.balance(mixture.layout.one_hot_batch(mixture.layout.pack(tensors)))
    log_p = (components.log_prob(z[:, None]) + logits.log_softmax(-1)).logsumexp(-1)
    return q_z.log_prob(z).sum(-1) - log_p


@every_class
def test_loss_is_the_stock_one_with_the_kl_divergence_from_the_mixture(trained, name):
    model = trained[name]
    labelled = np.flatnonzero(model.adata.obs["label"] != "unknown") if name == "SCANVI" else np.arange(20)
    module, tensors = model.module.eval(), some(model, labelled)
    inference = module.inference(**module._get_inference_input(tensors))
    generative = module.generative(**module._get_generative_input(tensors, inference))
    arguments = tensors, inference, generative
    kl_weight = 0.5
    extra = {"kl_weight": kl_weight}
    if name == "SCANVI":
        extra |= {"labelled_tensors": tensors, "classification_ratio": 3.0}
    found, stock = module.loss(*arguments, **extra), module.stock_loss(*arguments, **extra)
    key, q_z = kl_key(stock), posterior(inference)
    expected = by_hand(model, tensors, inference["z"], q_z)
    torch.testing.assert_close(found.kl_local[key], expected, rtol=1e-3, atol=1e-3)
    weight = kl_weight if name == "PEAKVI" else kl_weight / len(expected)
    torch.testing.assert_close(
        found.loss, stock.loss + weight * (expected - stock.kl_local[key]).sum(), rtol=1e-4, atol=1e-3
    )
    # The gradients too: those of what is written out here.
    networks = [parameter for parameter in module.parameters() if parameter.requires_grad]
    by_code, written = (
        torch.autograd.grad(loss, networks, allow_unused=True, retain_graph=True)
        for loss in (found.loss, stock.loss + weight * (expected - stock.kl_local[key]).sum())
    )
    for one, other in zip(by_code, written, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()) + 1e-6)


@every_class
def test_each_step_leaves_what_the_other_trains(name):
    model = make(getattr(adapted, name), n_components=K)
    kept = {}
    before = copy.deepcopy(model.module.state_dict())
    (step,) = model._map_steps()
    map_step = step.on_train_batch_end

    def on_train_batch_end(trainer, plan, *args):
        kept["svi"] = copy.deepcopy(plan.module.state_dict())
        map_step(trainer, plan, *args)
        kept["map"] = copy.deepcopy(plan.module.state_dict())

    step.on_train_batch_end = on_train_batch_end
    model._map_steps = lambda: [step]
    model.train(max_epochs=1, limit_train_batches=1, settle=False, **TRAIN)

    def changed(one, other):
        return {key for key in one if not torch.equal(one[key], other[key])}

    by_svi, by_map = changed(before, kept["svi"]), changed(kept["svi"], kept["map"])
    assert by_svi and not any(key.startswith("vmm.") for key in by_svi)
    assert by_map == {
        f"vmm.{each}"
        for each in (
            "prior.reciprocal_alpha_raw",
            "prior.pi_logits",
            "prior.precision_raw",
            "prior.pseudo_inputs.u",
            "balance.cells",
        )
    }


@every_class
def test_a_file_holds_the_model(trained, name, tmp_path):
    model = trained[name]
    z, clusters, probabilities = model.get_latent_representation(), model.predict_clusters(), model.predict_proba()
    model.save(str(tmp_path / "model"), overwrite=True)
    loaded = type(model).load(str(tmp_path / "model"), adata=model.adata, accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_latent_representation(), z)
    np.testing.assert_array_equal(loaded.predict_clusters(), clusters)
    np.testing.assert_array_equal(loaded.predict_proba(), probabilities)
    assert loaded.n_clusters_ == model.n_clusters_
    np.testing.assert_array_equal(loaded.components_, model.components_)
    np.testing.assert_array_equal(loaded.weights_, model.weights_)


@every_class
def test_clusters_merge_in_place_and_come_back(trained, name, tmp_path):
    model = trained[name]
    cells, tree, z = model.predict_clusters(), model.tree_, model.get_latent_representation()
    assert len(tree) + 1 == len(np.unique(model.components_)), "each component with cells is in the tree"
    assert 0 <= model.confidence_.closest <= 1 and model.confidence_.used == (len(tree) + 1) / K
    assert model.settled_.kept + model.settled_.born >= 1
    n = len(np.unique(cells))
    finest = len(tree) + 1
    model.merge_clusters(finest)
    np.testing.assert_array_equal(model.predict_clusters(), model.components_)
    model.save(str(tmp_path / "finest"))
    model.merge_clusters(1)
    assert not model.predict_clusters().any() and model.confidence_.largest == 1
    np.testing.assert_array_equal(model.get_latent_representation(), z)
    model.merge_clusters(n)
    np.testing.assert_array_equal(model.predict_clusters(), cells)
    assert model.tree_.equals(tree)
    loaded = type(model).load(str(tmp_path / "finest"), adata=model.adata, accelerator="cpu")
    assert loaded.settled_ == model.settled_ and len(np.unique(loaded.predict_clusters())) == finest
    loaded.merge_clusters(n)
    np.testing.assert_array_equal(loaded.predict_clusters(), cells)
    assert loaded.confidence_ == model.confidence_


@every_class
def test_annotate_writes_what_predict_tells(trained, name):
    model = trained[name]
    adata = model.annotate()
    np.testing.assert_array_equal(adata.obsm["X_vmm"], model.get_latent_representation())
    np.testing.assert_array_equal(adata.obs["vmm"].astype(int), model.predict_clusters())
    probabilities = model.predict_proba()
    np.testing.assert_allclose(adata.obs["vmm_probability"], probabilities.max(1), rtol=1e-5)
    entropy = dist.Categorical(torch.as_tensor(probabilities)).entropy()
    np.testing.assert_allclose(adata.obs["vmm_entropy"], entropy, atol=1e-4)
    counts = adata.obs["vmm"].value_counts(sort=False)
    assert (np.diff(counts) <= 0).all()  # the largest first
    assert adata.uns["vmm"]["settings"]["n_components"] == K
    assert adata.uns["vmm"]["versions"]["scvi-tools"] == scvi.__version__
    assert "n_active" in adata.uns["vmm"]["history"]


@every_class
def test_packed_cells_are_encoded_as_the_model_encodes_them(trained, name):
    model = trained[name]
    model.module.eval()
    rows = Cells(model, np.arange(40), model.module.vmm.layout)[torch.tensor([3, 0, 39])]
    with torch.no_grad():
        q_z = Adapted(model.module).encoder(rows)
    mean, variance = model.get_latent_representation(indices=[3, 0, 39], return_dist=True)
    torch.testing.assert_close(q_z.mean, torch.as_tensor(mean), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(q_z.variance, torch.as_tensor(variance), rtol=1e-4, atol=1e-5)


@every_class
def test_more_cells_than_a_minibatch_keep_their_order(name, trained):
    model = trained[name]
    layout, order = model.module.vmm.layout, torch.randperm(150, generator=torch.Generator().manual_seed(0))
    expected = layout.pack(some(model, order.numpy()))
    torch.testing.assert_close(Cells(model, np.arange(150), layout)[order], expected, rtol=0, atol=0)


@every_class
def test_stock_model_passes_the_contract(name):
    contract.check_class(adapted.STOCK[name])
    model = make(adapted.STOCK[name], **({"prior_mixture": False} if name == "CYTOVI" else {}))
    contract.check_model(model, some(model, np.arange(contract.FEW)))


@every_class
def test_standard_normal_is_the_stock_model_to_the_last_digit(name):
    settings = {"max_epochs": 2, "check_val_every_n_epoch": 1, **TRAIN}
    found, histories = [], []
    for cls, given in ((adapted.STOCK[name], {}), (getattr(adapted, name), {"prior": "standard_normal"})):
        model = make(cls, data(name), **given)
        model.train(**settings)
        found.append(model.get_latent_representation())
        histories.append(model.history)
    np.testing.assert_array_equal(*found)
    for column, values in histories[0].items():
        np.testing.assert_array_equal(values.to_numpy(float), histories[1][column].to_numpy(float), err_msg=column)


@every_class
def test_a_query_leaves_the_prior_as_it_is(trained, name, tmp_path):
    model = trained[name]
    if not hasattr(model, "load_query_data"):
        pytest.skip(f"{name} has no load_query_data")
    query = data(name, n=110, seed=1)
    query.obs["batch"] = np.where(np.arange(110) % 2, "first", "third")  # of which one was never seen
    model.save(str(tmp_path / "reference"), overwrite=True)
    first = type(model).load_query_data(query, str(tmp_path / "reference"), accelerator="cpu")
    encoder = Encoder(model.module.eval(), model.module.vmm.layout)
    centres, tril = model.module.vmm.prior(encoder), model.module.vmm.prior.centres(encoder).tril
    before = copy.deepcopy(first.module.vmm.state_dict())
    first.train(max_epochs=1, **TRAIN)
    again = data(name, n=100, seed=2)
    again.obs["batch"] = "fourth"
    second = type(model).load_query_data(again, first, accelerator="cpu")
    second.train(max_epochs=1, **TRAIN)
    for each in (first, second):
        mixture = each.module.vmm
        assert all(torch.equal(value, before[key]) for key, value in mixture.state_dict().items())
        p_z = mixture.prior(Encoder(each.module, mixture.layout))
        torch.testing.assert_close(p_z.weights, centres.weights)
        torch.testing.assert_close(p_z.loc, centres.loc, rtol=1e-4, atol=1e-5)
        found = mixture.prior.centres(Encoder(each.module, mixture.layout)).tril
        torch.testing.assert_close(found @ found.mT, tril @ tril.mT, rtol=1e-4, atol=1e-5)
        assert len(each.predict_clusters()) == each.adata.n_obs == len(each.components_)
        assert each.confidence_ is each.tree_ is each.settled_ is None
        with pytest.raises(ValueError, match="merge the reference"):
            each.merge_clusters(1)
