"""Rows that do not fit into a GPU's memory, or do: the same minibatches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_vmm import VMM
from pyro_vmm.estimators import array_estimator
from pyro_vmm.runtime import device_rows
from pyro_vmm.runtime.device_rows import HostRows, place, resident, subset
from pyro_vmm.runtime.rows import minibatches, read

CPU = torch.device("cpu")
GPU = SimpleNamespace(type="cuda")  # what asks for the kind alone takes it for one
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])


def data(rows: int = 23) -> torch.Tensor:
    return torch.arange(rows * 6.0).view(rows, 2, 3)


@every_device
@pytest.mark.parametrize("kind", ["tensor", "host", "subset of host"])
def test_minibatches_are_the_rows_asked_for(device, kind):
    x, device = data(), torch.device(device)
    some = np.random.RandomState(0).permutation(23)[:17]
    rows = {
        "tensor": lambda: x.to(device),
        "host": lambda: HostRows(x, device),
        "subset of host": lambda: HostRows(x, device).subset(some),
    }[kind]()
    expected = x[some] if "subset" in kind else x
    batches = minibatches(torch.randperm(len(rows)), 5)
    found = list(read(rows, batches))
    assert len(rows) == len(expected) and {each.device.type for each in found} == {device.type}
    for got, positions in zip(found, batches, strict=True):
        assert torch.equal(got.cpu(), expected[positions])
    assert torch.equal(rows[torch.tensor([3, 1])].cpu(), expected[[3, 1]])


def test_positions_go_to_a_device_at_once():
    """As seen on torch's device without values."""
    asked = []

    class Watched(torch.Tensor):
        def __getitem__(self, index):
            asked.append(index.device.type)
            return super().__getitem__(index)

    x = torch.empty(23, 2, device="meta").as_subclass(Watched)
    assert [len(batch) for batch in read(x, minibatches(torch.randperm(23), 5))] == [5, 5, 5, 5, 3]
    assert set(asked) == {"meta"}


@pytest.mark.parametrize(("free", "fits"), [(23 * 6 * 4 * 4, True), (23 * 6 * 4 * 4 - 1, False)])
def test_rows_are_placed_by_the_memory_that_is_free(free, fits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    x = data().float()
    made = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: made.append(device) or self)
    placed = place(x, GPU)
    assert isinstance(placed, HostRows) == (not fits) and made == ([GPU] if fits else [])


def test_on_a_cpu_rows_are_a_tensor():
    x = data()
    assert place(x, CPU) is x


class Made:
    """Rows made when asked for."""

    def __init__(self, x):
        self.x, self.asked = x, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.asked.append(len(index))
        return self.x[index]


def test_rows_become_resident_where_there_is_room(monkeypatch):
    made = Made(data())
    assert resident(made, CPU) is made and not made.asked
    monkeypatch.setattr(device_rows, "has_room", lambda device, size: size <= 23 * 6 * data().element_size())
    found = resident(made, GPU, rows_at_once=10)
    assert torch.equal(found, data()) and made.asked == [1, 10, 10, 3]
    more = Made(data(24))
    assert resident(more, GPU) is more
    assert len(resident(Made(data(0)), GPU)) == 0


def test_subsets():
    some = np.array([4, 2])
    assert torch.equal(subset(data(), some), data()[some])
    assert torch.equal(subset(HostRows(data(), CPU), some)[torch.arange(2)], data()[some])


def test_an_estimator_gives_the_same_numbers_with_rows_on_the_host(monkeypatch):
    X = np.random.RandomState(0).randn(60, 4)
    settings = {"n_components": 3, "latent_dim": 2, "hidden": (8,), "epochs": 3, "batch_size": 16, "random_state": 0}
    expected = VMM(**settings).fit(X)
    monkeypatch.setattr(array_estimator, "place", HostRows)
    found = VMM(**settings).fit(X)
    columns = expected.history_.columns.drop("seconds")
    assert found.history_[columns].equals(expected.history_[columns])
    np.testing.assert_array_equal(found.transform(X), expected.transform(X))
    np.testing.assert_array_equal(found.labels_, expected.labels_)
