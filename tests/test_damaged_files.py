"""Models and checkpoints whose entries are missing or wrong: one line that names the file, or the same numbers."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.rivals import DLGMM, GMVAE, VaDE

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


OF_CELLS = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"], "size_factor_key": "age"}
#: An estimator of each kind, and its data.
MODELS = {
    "VMM": (VMM(**TINY), lambda: X),
    "SingleCellVMM": (
        SingleCellVMM("batch", **TINY, library="inferred", **{**OF_CELLS, "size_factor_key": None}),
        cells,
    ),
    "VaDE": (VaDE(**TINY, pretraining_epochs=1), lambda: X),
    "GMVAE": (GMVAE(**TINY), lambda: X),
    "DLGMM": (DLGMM(**TINY), lambda: X),
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Callable[[str], tuple]:
    """A fitted model by the name of its class, the files that it wrote, and its data."""
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def build(name: str) -> tuple:
        if name not in made:
            model, data = MODELS[name][0], MODELS[name][1]()
            checkpoints = []

            def keep(row, vae):
                if row["epoch"] == 2:
                    checkpoints.append((folder / "checkpoint.pt").read_bytes())

            model.fit(data, checkpoint=folder / "checkpoint.pt", callbacks=[keep])
            model.save(folder / "model.pt")
            made[name] = model, data, (folder / "model.pt").read_bytes(), checkpoints[0]
        return made[name]

    return build


def content_of(whole: bytes, path: Path) -> dict:
    path.write_bytes(whole)
    return torch.load(path, weights_only=True)


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
        holder[place[-1]] = torch.full_like(holder[place[-1]], float("nan"))
    else:
        holder[place[-1]] = OTHERS[change]
    return other


def changes(content: dict) -> Iterator[tuple[tuple, str]]:
    for place in places(content):
        value = content
        for name in place:
            value = value[name]
        yield place, "missing"
        yield from ((place, change) for change in OTHERS)
        if isinstance(value, torch.Tensor):
            yield from ((place, change) for change in ("shape", "dtype"))
            if value.dtype.is_floating_point and "state" in place[:1]:
                yield place, "not finite"


def test_whatever_is_wrong_with_a_model_is_told_or_does_no_harm(name, fitted, tmp_path):
    model, data, whole, _ = fitted(name)
    expected, path, told = model.score_samples(data), tmp_path / "damaged.pt", 0
    content = content_of(whole, path)
    for place, change in changes(content):
        torch.save(with_other(content, place, change), path)
        try:
            again = type(model).load(path)
        except ValueError as error:
            assert "damaged.pt" in str(error) and "\n" not in str(error), (place, change)
            told += 1
            continue
        np.testing.assert_array_equal(again.score_samples(data), expected, err_msg=f"{place} {change}")
        np.testing.assert_array_equal(again.labels_, model.labels_, err_msg=f"{place} {change}")
        assert place[0] in ("versions", "params") or "learning_rates" in place or "estimator" in place, (place, change)
    assert told > 100
