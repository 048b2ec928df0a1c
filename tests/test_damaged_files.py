"""Models and checkpoints whose entries are missing or wrong: one line that names the file, or the same numbers."""

import copy
import itertools
from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.inference import Trainer, TrainingConfig
from pyro_vmm.rivals import DLGMM, GMVAE, VaDE
from pyro_vmm.runtime import files

TINY = {
    "n_components": 3,
    "latent_dim": 2,
    "hidden": (4,),
    "epochs": 2,
    "checkpoint_every": 1,
    "patience": None,
    "device": "cpu",
    "random_state": 0,
}
X = np.random.RandomState(0).randn(40, 3)


def cells() -> ad.AnnData:
    x = np.random.default_rng(0).poisson(2.0, (40, 6)).astype(np.float32) + 1
    obs = pd.DataFrame(
        {"batch": ["a", "b"] * 20, "donor": ["p", "q", "r", "s"] * 10, "age": np.arange(40.0)},
        index=[f"c{i}" for i in range(40)],
    )
    return ad.AnnData(sparse.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(6)]))


OF_CELLS = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"], "library": "inferred"}
#: An estimator of each kind, and its data.
MODELS = {
    "VMM": (VMM(**TINY), lambda: X),
    "SingleCellVMM": (
        SingleCellVMM("batch", **TINY, **OF_CELLS),
        cells,
    ),
    "VaDE": (VaDE(**TINY, pretraining_epochs=1), lambda: X),
    "GMVAE": (GMVAE(**TINY), lambda: X),
    "DLGMM": (DLGMM(**TINY), lambda: X),
}


# The rivals' files are read by the same code, and take two minutes more.
KINDS = [name if name in ("VMM", "SingleCellVMM") else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


@pytest.fixture(scope="module", params=KINDS)
def fitted(request, tmp_path_factory) -> tuple:
    """A fitted model, its data, and what it wrote: the model, and the checkpoint of the first epoch."""
    folder, checkpoints = tmp_path_factory.mktemp("whole"), []
    model, data = clone(MODELS[request.param][0]), MODELS[request.param][1]()

    def keep(row, vae):
        if row["epoch"] == 2:
            checkpoints.append(torch.load(folder / "checkpoint.pt", weights_only=True))

    model.fit(data, checkpoint=folder / "checkpoint.pt", callbacks=[keep])
    model.save(folder / "model.pt")
    return model, data, torch.load(folder / "model.pt", weights_only=True), checkpoints[0]


#: What stands in the place of an entry.
OTHERS = {
    "text": "text",
    "nothing": None,
    "number": -7.5,
    "list": [[1], {}],
    "names": {"a": 1},
    "tensor": torch.full((2, 1), float("nan")),
}


def places(content, so_far: tuple = ()) -> Iterator[tuple]:
    """Where every entry is, of all parts."""
    for name, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*so_far, name)
        if isinstance(value, dict | list):
            yield from places(value, (*so_far, name))


def with_other(content: dict, place: tuple, change: str) -> dict:
    """The same with another entry, or without it."""
    other = copy.deepcopy(content)
    holder = other
    for name in place[:-1]:
        holder = holder[name]
    if change == "missing":
        del holder[place[-1]]
    elif change == "shape":
        holder[place[-1]] = holder[place[-1]][None]
    elif change == "dtype":
        value = holder[place[-1]]
        holder[place[-1]] = value.to(torch.float16 if value.dtype.is_floating_point else torch.int16)
    elif change == "not finite":
        holder[place[-1]] = torch.full_like(holder[place[-1]], float("nan"), dtype=torch.float32)
    else:
        holder[place[-1]] = OTHERS[change]
    return other


def changes(content: dict) -> Iterator[tuple[tuple, dict]]:
    """Every entry once missing and once another one: where it is, and the content with it."""
    for i, place in enumerate(places(content)):
        value = content
        for name in place:
            value = value[name]
        kinds = [*OTHERS, *(["shape", "dtype", "not finite"] * 2 if isinstance(value, torch.Tensor) else [])]
        for change in ("missing", kinds[i % len(kinds)]):
            yield (*place, change), with_other(content, place, change)


def refused(error: ValueError) -> bool:
    return "damaged.pt" in str(error) and "\n" not in str(error)


def test_what_is_wrong_with_a_model_is_told_unless_it_does_no_harm(fitted, tmp_path):
    (model, data, content, _), path, told = fitted, tmp_path / "damaged.pt", 0
    expected = model.score_samples(data)
    for place, other in changes(content):
        torch.save(other, path)
        try:
            again = type(model).load(path)
        except ValueError as error:
            assert refused(error), (place, error)
            told += 1
            continue
        # A gene or category of another name is a whole model, of other data; so is a covariate of another mean.
        if place[-1] != "text" and not (place[1:3] == ("covariates", "continuous") and place[-1] == "number"):
            np.testing.assert_array_equal(again.score_samples(data), expected, err_msg=str(place))
            np.testing.assert_array_equal(again.labels_, model.labels_, err_msg=str(place))
    assert told > 60


def test_what_is_wrong_with_a_checkpoint_is_told_unless_it_does_no_harm(fitted, tmp_path):
    (model, data, _, content), path, told = fitted, tmp_path / "damaged.pt", 0
    expected = model.vae_.state_dict()
    # Each takes a start of training. Cells take longer to read, and their checkpoints have the same parts.
    some = 6 if isinstance(model, SingleCellVMM) else 2
    for place, other in itertools.islice(changes(content), 0, None, some):
        if place[:1] == ("params",) or (place[2:3] == ("state",) and len(place) == 5):
            continue  # other parameters are another test's; what Adam has not seen it has no memory of
        torch.save(other, path)
        try:
            again = clone(model).fit(data, resume=path)
        except ValueError as error:
            assert refused(error), (place, error)
            told += 1
            continue
        for name, value in again.vae_.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=str(place))
    assert told > 100 / some


def test_what_is_wrong_with_a_pre_training_is_told(tmp_path):
    saved, real = [], files.save
    model = VaDE(**TINY, pretraining_epochs=2)
    path = tmp_path / "damaged.pt"

    def keep(content, path, kind):
        real(content, path, kind)
        saved.append(torch.load(path, weights_only=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "save", keep)
        model.fit(X, checkpoint=path)
    content = saved[1]
    assert len(content["trainer"]["pretraining"]["history"]) == 1
    for name in content["trainer"]["pretraining"]:
        for change in ("missing", "text", "list", "names"):
            torch.save(with_other(content, ("trainer", "pretraining", name), change), path)
            with pytest.raises(ValueError, match=r"damaged\.pt") as error:
                clone(model).fit(X, resume=path)
            assert refused(error.value)
    torch.save(content, path)
    assert clone(model).fit(X, resume=path).n_iter_ == 2


def test_a_trainer_refuses_a_state_of_another_kind(fitted):
    model, _, _, content = fitted
    config = TrainingConfig(**content["trainer"]["settings"])
    for state in (None, [], "text", {}, {"settings": {}}, {"settings": content["trainer"]["settings"]}):
        with pytest.raises(ValueError, match="continue") as error:
            Trainer(model.vae_, config).load_state_dict(state)
        assert "\n" not in str(error.value)


# One flipped bit


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def test_a_flipped_bit_is_told_or_changes_nothing(tmp_path):
    path, random = tmp_path / "model.pt", np.random.RandomState(0)
    files.save({"state": {f"w{i}": torch.randn(9, 5) for i in range(3)}, "note": "text", "n": 3}, path, "model")
    whole, expected, told = path.read_bytes(), files.load(path, "model"), 0
    for place in random.randint(8 * len(whole), size=400):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            found = files.load(path, "model")
        except ValueError as error:
            assert "model.pt is not" in str(error) or "format version" in str(error)
            assert "\n" not in str(error)
            told += 1
            continue
        assert equal(found, expected), place
    assert told > 200
