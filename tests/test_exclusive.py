"""Several threads at once: each gets the numbers that it would get alone, and nobody waits for ever."""

import multiprocessing
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import anndata
import numpy as np
import pyro
import pytest
import torch

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.rivals import GMVAE, VaDE
from pyro_vmm.runtime.exclusive import FairLock, Shared, exclusive
from pyro_vmm.runtime.randomness import RandomNumbers, seeded

X = np.random.default_rng(0).normal(size=(60, 4)) + np.repeat([0, 5, 10], 20)[:, None]
CELLS = anndata.AnnData(
    np.random.default_rng(1).poisson(3.0, (60, 6)).astype(np.float32) + 1,
    obs={"batch": np.tile(["a", "b"], 30)},
)
TINY = {"latent_dim": 2, "hidden": (8,), "epochs": 3, "batch_size": 20}


@pytest.fixture(autouse=True)
def eager_switches():
    """Threads take turns as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def make(kind, seed: int):
    if kind is SingleCellVMM:
        return SingleCellVMM("batch", n_components=4, random_state=seed, **TINY)
    if kind is VMM:
        return VMM(4, random_state=seed, **TINY)
    options = {"pretraining_epochs": 2} if kind is VaDE else {}
    return kind(3, random_state=seed, **TINY, **options)


def numbers(model, data) -> list[np.ndarray]:
    """What a user sees of a fitted model, draws included."""
    drawn = model.sample(5, random_state=1)
    drawn = drawn.X.toarray() if isinstance(drawn, anndata.AnnData) else drawn[0]
    scores = model.score_samples(data, n_importance_samples=5)
    return [model.transform(data), model.predict_proba(data), scores, drawn, model.history_["elbo"].to_numpy()]


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", [VMM, SingleCellVMM, VaDE, GMVAE])
def test_fits_at_once_are_those_alone(kind):
    data, seeds = (CELLS if kind is SingleCellVMM else X), [0, 1, 2, 3]

    def fit(seed: int) -> list[np.ndarray]:
        return numbers(make(kind, seed).fit(data), data)

    alone = [fit(seed) for seed in seeds]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(fit, seeds))
    assert all(same(found, expected) for found, expected in zip(together, alone, strict=True))
    assert not same(alone[0], alone[1])


def test_a_fitted_model_answers_alike_in_all_threads_and_beside_a_fit():
    model, expected_fit = make(VMM, 0).fit(X), numbers(make(VMM, 1).fit(X), X)
    expected = numbers(model, X)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(numbers, model, X) for _ in range(30)]
        fits = [pool.submit(lambda: numbers(make(VMM, 1).fit(X), X)) for _ in range(3)]
        assert all(same(answer.result(), expected) for answer in answers)
        assert all(same(fit.result(), expected_fit) for fit in fits)


def test_a_fit_in_a_thread_leaves_process_wide_state_alone():
    filters, checks = list(warnings.filters), pyro.infer.util.is_validation_enabled()
    state = torch.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: make(VMM, seed).fit(X), range(2)))
    assert list(warnings.filters) == filters
    assert pyro.infer.util.is_validation_enabled() == checks
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float64


def test_a_model_answers_while_another_trains():
    """The lock is released between steps: who asks for it is not kept waiting until training ends."""
    model, trained, answered = make(VMM, 0).fit(X), threading.Event(), threading.Event()

    def train() -> None:
        def wait_for_answer(row, vae) -> bool:
            return answered.is_set()

        VMM(4, random_state=0, **{**TINY, "epochs": 10_000}, patience=None).fit(X, callbacks=[wait_for_answer])
        trained.set()

    thread = threading.Thread(target=train)
    thread.start()
    for _ in range(5):
        model.score_samples(X)
    assert not trained.is_set()
    answered.set()
    thread.join()


def test_callbacks_draw_without_changing_the_fit():
    alone = numbers(make(VMM, 0).fit(X), X)
    beside = make(VMM, 0).fit(X, callbacks=[lambda row, vae: torch.rand(3).sum() < 0])
    assert same(numbers(beside, X), alone)


# --- the lock ---


def test_threads_are_served_in_the_order_of_asking():
    lock, order, asked = FairLock(), [], []

    def ask(i: int) -> None:
        asked.append(i)
        with lock:
            order.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(5)]
    with lock, lock:  # it is reentrant
        for i, thread in enumerate(threads):
            thread.start()
            while len(lock._waiting) <= i:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_one_thread_at_a_time_is_inside():
    inside, most = 0, 0

    def enter(_) -> None:
        nonlocal inside, most
        for _ in range(50):
            with exclusive(), exclusive():
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert most == 1 and inside == 0


@pytest.mark.parametrize("handed_over", [False, True])
def test_who_gives_up_waiting_leaves_the_line(handed_over, monkeypatch):
    lock, held, release = FairLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    wait = threading.Event.wait

    def interrupted(event, *args):
        if threading.current_thread() is not threading.main_thread():
            return wait(event, *args)
        if handed_over:  # Ctrl-C comes after the lock did
            release.set()
            wait(event)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Event, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt), lock:
        pass
    monkeypatch.undo()
    release.set()
    holder.join()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: lock.__enter__() is None).result(10)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_lacks():
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive():
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads
        child = multiprocessing.get_context("fork").Process(target=_enter)
        child.start()
    child.join(30)
    finished = child.exitcode
    child.kill()
    release.set()
    thread.join()
    assert finished == 0


def _enter() -> None:
    with exclusive():
        pass


def test_the_first_enters_a_shared_context_and_the_last_leaves_it():
    entered = []

    class Context:
        def __enter__(self):
            entered.append("in")

        def __exit__(self, *_):
            entered.append("out")

    shared = Shared(Context)
    for _ in range(2):
        with shared, shared:
            assert entered[-1] == "in"
    assert entered == ["in", "out", "in", "out"]


# --- random numbers ---


def test_sequences_go_on_where_they_were():
    torch.manual_seed(3)
    expected, others = torch.rand(6), torch.rand(2)
    torch.manual_seed(3)
    torch.rand(6)
    numbers, found = RandomNumbers(3), []
    for _ in range(3):
        with numbers.drawn():
            found.append(torch.rand(2))
        with seeded(5):
            torch.rand(7)
    assert torch.equal(torch.cat(found), expected)
    assert torch.equal(torch.rand(2), others)
    again = RandomNumbers(0)
    again.state = numbers.state
    with again.drawn():
        assert torch.equal(torch.rand(2), others)
