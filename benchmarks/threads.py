"""How many fits and answers in several threads at once differ from those in a single thread.

    OMP_NUM_THREADS=1 python benchmarks/threads.py --fits 200 --threads 2 4

Models of arrays and of cells are fitted in a pool of threads, while two more threads call ``score_samples``, ``sample``
and ``predict`` of a fitted model. Every number has to be equal to that of the same call alone.
"""

import argparse
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anndata
import numpy as np

from pyro_vmm import VMM, SingleCellVMM

SEEDS = 10
TINY = {"latent_dim": 2, "hidden": (8,), "epochs": 4, "batch_size": 30, "settle": True}
X = np.random.default_rng(0).normal(size=(90, 5)) + np.repeat([0, 5, 10], 30)[:, None]
CELLS = anndata.AnnData(
    np.random.default_rng(1).poisson(3.0, (60, 6)).astype(np.float32) + 1, obs={"batch": np.tile(["a", "b"], 30)}
)


def fit(number: int) -> tuple[np.ndarray, ...]:
    """The results of the fit of that number; every other fit is of cells."""
    seed = number % SEEDS
    if seed % 2:
        model, data = SingleCellVMM("batch", n_components=4, random_state=seed, **TINY), CELLS
    else:
        model, data = VMM(4, random_state=seed, **TINY), X
    model.fit(data)
    return model.transform(data), model.predict_proba(data), model.history_["elbo"].to_numpy()


def answers(model: VMM) -> tuple[np.ndarray, ...]:
    """The answers of a fitted model."""
    return model.score_samples(X, 20), model.sample(20, random_state=1)[0], model.predict(X)


def same(found, expected) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def compare(fits: int, threads: int, alone: list, model: VMM, expected: tuple) -> str:
    """A line on ``fits`` fits in ``threads`` threads."""
    done, asked, wrong = threading.Event(), [0, 0], [0, 0]

    def ask(i: int) -> None:
        while not done.is_set():
            asked[i] += 1
            wrong[i] += not same(answers(model), expected)

    started = time.perf_counter()
    others = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    for thread in others:
        thread.start()
    with ThreadPoolExecutor(threads) as pool:
        different = sum(not same(found, alone[i % SEEDS]) for i, found in enumerate(pool.map(fit, range(fits))))
    done.set()
    for thread in others:
        thread.join()
    seconds = time.perf_counter() - started
    told = f"{different} of {fits} fits and {sum(wrong)} of {sum(asked)} answers differ"
    return f"{threads} threads: {told} ({seconds:.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", type=int, default=200)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 4])
    args = parser.parse_args()
    alone = [fit(seed) for seed in range(SEEDS)]
    model = VMM(4, random_state=0, **TINY).fit(X)
    expected = answers(model)
    for threads in args.threads:
        print(compare(args.fits, threads, alone, model, expected), flush=True)


if __name__ == "__main__":
    main()
