"""The number of torch's threads: what changes it, and what trains with it all the same."""

import math
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import anndata
import numpy as np
import pytest
import torch

from pyro_vmm import VMM, SingleCellVMM, Trainer, TrainingConfig
from pyro_vmm.networks import conv_encoder
from pyro_vmm.runtime.threads import at_most, same_threads, threads_for, threads_of_environment

TINY = {"n_components": 3, "latent_dim": 2, "hidden": (8,), "epochs": 1, "random_state": 0}
X = np.random.default_rng(0).poisson(3.0, (60, 5)).astype(np.float32) + 1


@pytest.fixture(autouse=True)
def three_threads(monkeypatch) -> Iterator[None]:
    """Numba has run, on three cores, in a process that was started for one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace(config=SimpleNamespace(NUMBA_NUM_THREADS=3)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


def test_others_leave_the_number():
    with pytest.raises(RuntimeError), same_threads():
        torch.set_num_threads(2)
        raise RuntimeError
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("variable", "threads"),
    [("1", 1), ("2,1", 2), ("3", 3), ("4", 3), ("", 3), ("0", 3), ("-1", 3), ("all", 3), (None, 3)],
)
def test_the_number_is_that_of_the_environment_meanwhile(variable, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    with pytest.raises(RuntimeError), threads_of_environment():
        assert torch.get_num_threads() == threads
        raise RuntimeError
    assert torch.get_num_threads() == 3


def test_a_number_of_the_users_own_stays(monkeypatch):
    torch.set_num_threads(2)
    with threads_of_environment():
        assert torch.get_num_threads() == 2
    torch.set_num_threads(3)
    monkeypatch.delitem(sys.modules, "numba")
    with threads_of_environment():
        assert torch.get_num_threads() == 3


@pytest.mark.parametrize("kind", [VMM, SingleCellVMM])
def test_estimators_keep_to_it(kind):
    data, seen = X if kind is VMM else anndata.AnnData(X), []

    def record(*_) -> None:
        seen.append(torch.get_num_threads())

    hook = torch.nn.modules.module.register_module_forward_hook(record)
    try:
        model = kind(**TINY).fit(data)
        for method in ("transform", "predict", "predict_proba", "score_samples"):
            getattr(model, method)(data)
        model.sample(2)
    finally:
        hook.remove()
    assert len(seen) > 5 and set(seen) == {1}
    assert torch.get_num_threads() == 3


def test_threads_follow_the_work():
    assert [threads_for(work) for work in (0, 10**6, 25 * 10**6, 10**8, 10**9)] == [1, 1, 1, 4, 40]
    assert threads_for(math.inf) >= 1000


def test_convolutions_are_not_limited():
    images = torch.rand(30, 8, 8)
    model = VMM(encoder=conv_encoder((8, 8), (2,), 4), **{**TINY, "hidden": (4,), "settle": False}).fit(images)
    assert Trainer(model.vae_, TrainingConfig()).threads > 100


def test_at_most_so_many_threads():
    with pytest.raises(RuntimeError), at_most(2):
        assert torch.get_num_threads() == 2
        raise RuntimeError
    assert torch.get_num_threads() == 3
    with at_most(4):
        assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("width", "threads"), [(8, 1), (1200, 2)])
def test_small_networks_train_in_few_threads(width, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    seen = []

    def record(*_) -> None:
        seen.append(torch.get_num_threads())

    x = torch.randn(60, 700)
    settings = {"hidden": (width,), "batch_size": 30, "settle": False, "patience": None, "validation_fraction": 0.0}
    hook = torch.nn.modules.module.register_module_forward_hook(record)
    try:
        VMM(**{**TINY, **settings}).fit(x, callbacks=[lambda *_: True])
    finally:
        hook.remove()
    # 33 rows times 2 x 700 x 8 weights are one thread's work; times 2 x 700 x 1200, two threads'.
    assert min(seen) == threads and torch.get_num_threads() == 3
