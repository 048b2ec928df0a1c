"""Several processes train as one does on the same minibatches; one of them writes; none waits for one that failed."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from common import FORKS, build, config, data, every_prior, noisy, plain, planted, state
from pyro import distributions as dist_of
from torch import distributed as dist
from torch import nn

from pyro_vmm import VMM, SingleCellVMM, plots
from pyro_vmm.cli import main
from pyro_vmm.distributions import ExpectedNormal, TrilNormal
from pyro_vmm.inference import Trainer, TrainingDiverged
from pyro_vmm.rivals.sticks import Kumaraswamy
from pyro_vmm.runtime.ranks import Ranks, launched_rank, process_group
from pyro_vmm.runtime.whole_batch import draw, whole_batch

ROOT = Path(__file__).parents[1]
# Seconds; a run takes a few, also on a busy machine. Only one that hangs gets here.
TIMEOUT = 300
NETWORKS = {"mlp": plain, "noisy": noisy}

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


# Processes that run functions of this file


class Processes:
    """Some processes in one gloo group."""

    def __init__(self, number: int, folder: Path):
        self.pipes, self.processes = [], []
        for rank in range(number):
            ours, theirs = FORKS.Pipe()
            process = FORKS.Process(target=work, args=(rank, number, str(folder / "store"), theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function, *args) -> list:
        """What the function returns in each of them, or the exception that it raises."""
        for pipe in self.pipes:
            pipe.send((function, args))
        assert all(pipe.poll(TIMEOUT) for pipe in self.pipes), "a process did not come back"
        return [pipe.recv() for pipe in self.pipes]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def work(rank: int, number: int, store: str, pipe) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    timeout = timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=number, timeout=timeout)
    while True:
        function, args = pipe.recv()
        try:
            pipe.send(function(*args))
        except BaseException as error:  # the test is told
            pipe.send(error)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    processes = Processes(2, tmp_path_factory.mktemp("two"))
    yield processes
    processes.end()


def assert_close(left, right, tolerance: float = 1e-8, path: str = "") -> None:
    """Through dicts and lists; seconds are not compared."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left.keys() - {"seconds"}:
            assert_close(left[key], right[key], tolerance, f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for i, pair in enumerate(zip(left, right, strict=True)):
            assert_close(*pair, tolerance, f"{path}[{i}]")
    elif left is None or isinstance(left, str):
        assert left == right, path
    else:
        # NaN stands where there is nothing, as the MAP objective of a prior without a MAP step.
        torch.testing.assert_close(
            torch.as_tensor(left),
            torch.as_tensor(right),
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text: f"{path}: {text}",
        )


# The same numbers


def train(prior="vmm", networks="mlp", settings=None, changes=None, dtype=torch.float64, rows=50) -> dict:
    """Train the small model of test_training; without ``changes`` that is 20 steps, every fourth on two rows."""
    x = data(rows).to(dtype)
    vae = build(prior, NETWORKS[networks], seed=1, **(settings or {})).to(dtype)
    trainer = Trainer(vae, config(**{"epochs": 5, **(changes or {})}))
    trainer.fit(x, x[:13], np.arange(13) % 2, progress=False)
    return trainer.state_dict()


def assert_trains_alike(processes: Processes, *args, tolerance: float = 1e-8) -> None:
    alone, ranks = train(*args), processes.run(train, *args)
    for each in ranks:
        assert not isinstance(each, BaseException), each
        assert_close(alone, each, tolerance)
    assert_close(ranks[0], ranks[1], 0.0)


@pytest.mark.parametrize("networks", ["mlp", "noisy"])
@every_prior
def test_twenty_steps_of_every_prior(prior, networks, two):
    """With BatchNorm and dropout too; and the random numbers end where those of one process do.

    Biases before BatchNorm have no gradient but rounding, of which Adam makes steps.
    """
    assert_trains_alike(two, prior, networks, tolerance=1e-8 if networks == "mlp" else 1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"expectation": "sampled"},
        {"responsibilities": "differentiated"},
        {"m_prior": "batch", "hyperprior": "reference"},
        {"m_prior": 7.0},
    ],
    ids=["sampled", "differentiated", "batch", "small m_prior"],
)
def test_settings_of_the_mixture(settings, two):
    assert_trains_alike(two, "vmm", "mlp", settings)


@pytest.mark.parametrize("networks", ["mlp", "noisy"])
def test_reused_draws(networks, two):
    tolerance = 1e-8 if networks == "mlp" else 1e-6
    assert_trains_alike(two, "vmm", networks, None, {"reuse_draws": True}, tolerance=tolerance)


@pytest.mark.parametrize("m_prior", [256, "batch"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_minibatches_that_do_not_divide_evenly(batch_size, m_prior, two):
    """Of one row, which one process has and the other borrows; of three; of all rows."""
    changes = {"batch_size": batch_size, "epochs": 2}
    assert_trains_alike(two, "vmm", "mlp", {"m_prior": m_prior}, changes, torch.float64, 15)


@pytest.mark.parametrize("networks", ["mlp", "noisy"])
def test_twenty_steps_in_single_precision(networks, two):
    """With BatchNorm the objective alone: it does not depend on all biases, and these go where rounding drives them."""
    changes = {"learning_rate": 1e-3, "batch_size": 25, "epochs": 10}
    arguments = ("vmm", networks, None, changes, torch.float32)
    alone, (each, _) = train(*arguments), two.run(train, *arguments)
    if networks == "mlp":
        assert_close(alone["history"], each["history"], 1e-5)
        assert_close(alone["model"], each["model"], 1e-5)
    for name in ("elbo", "log_likelihood"):
        assert_close([row[name] for row in alone["history"]], [row[name] for row in each["history"]], 1e-5)


def convolve(rows: int) -> list[torch.Tensor]:
    """Images through BatchNorm and dropout twice: what the rows held here become, gradients, running statistics."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.BatchNorm2d(2, momentum=None), nn.Conv2d(2, 3, 3), nn.Dropout2d(0.5), nn.BatchNorm2d(3))
    ranks, x, weight = Ranks.present(), 5 + torch.randn(rows, 2, 4, 4), torch.randn(rows, 3, 2, 2)
    held = ranks.share(torch.arange(rows))
    for _ in range(2):
        net.zero_grad()
        part = x[held].requires_grad_()
        with whole_batch(ranks, net):
            y = net(part)
        ranks.own((weight[held] * y.square()).sum()).backward()
        ranks.sum_gradients(net.parameters())
    every = torch.zeros(rows, 2, 4, 4).index_copy(0, held, ranks.own(part.grad))
    return [ranks.sum(every), *(p.grad for p in net.parameters()), *net.buffers(), torch.rand(1)]


@pytest.mark.parametrize("rows", [2, 5])
def test_batchnorm_of_images_and_its_gradients(rows, two):
    for each in two.run(convolve, rows):
        assert_close(convolve(rows), each)


def test_more_processes_than_rows(tmp_path):
    """The third borrows a row, and BatchNorm and dropout do not see it twice."""
    three = Processes(3, tmp_path)
    try:
        for each in three.run(convolve, 2):
            assert_close(convolve(2), each)
    finally:
        three.end()


def held_by_the_second(rows: int = 5) -> Ranks:
    """The second of two processes, which holds the last three of five rows; it meets no other one."""
    ranks = Ranks(1, 2)
    ranks.begin(rows)
    return ranks


def tril_normal(rows: torch.Tensor) -> dist_of.TorchDistribution:
    return TrilNormal(rows, rows.abs().diag_embed() + rows.unsqueeze(-1).expand(*rows.shape, 4).tril(-1))


@pytest.mark.parametrize(
    "of",
    [
        lambda rows: dist_of.Normal(rows, rows.abs()).to_event(1),
        lambda rows: dist_of.Normal(rows.expand(3, *rows.shape), 1.0).to_event(1),  # one for each value of c
        lambda rows: dist_of.LogNormal(rows[:, 0], rows[:, 1].abs()),
        lambda rows: dist_of.StudentT(3.0, rows, rows.abs()).to_event(1),
        lambda rows: Kumaraswamy(rows.abs(), 1 + rows.abs()).to_event(1),
        tril_normal,
    ],
    ids=["normal", "one for each component", "log-normal", "student-t", "kumaraswamy", "full covariance"],
)
def test_a_draw_is_that_of_the_row_among_all_rows(of):
    rows, held, ranks = torch.randn(5, 4), torch.arange(2, 5), held_by_the_second()
    alone, part = of(rows), of(rows[held].requires_grad_())
    torch.manual_seed(7)
    expected = draw(alone, Ranks())
    torch.manual_seed(7)
    found = draw(part, ranks)
    dim = len(part.batch_shape) - 1
    torch.testing.assert_close(found, expected.index_select(dim, held))
    torch.testing.assert_close(part.log_prob(found), alone.log_prob(expected).index_select(dim, held))
    after = torch.rand(1)
    torch.manual_seed(7)
    draw(alone, Ranks())
    assert torch.equal(torch.rand(1), after)


def test_a_distribution_that_names_no_parameters_is_refused():
    with pytest.raises(ValueError, match="several processes can't draw from a ExpectedNormal: expected"):
        draw(ExpectedNormal(0.0, 1.0, torch.eye(2).expand(3, 2, 2)), held_by_the_second())


@pytest.mark.parametrize("repeated", [1, 3])
def test_dropout_is_that_of_the_row_among_all_rows(repeated):
    """Of rows as they are, and of each row under several components, one component after the other."""
    net, x, ranks = nn.Sequential(nn.Dropout(0.5)), torch.randn(repeated, 5, 6), held_by_the_second()
    torch.manual_seed(7)
    expected = net(x.flatten(0, 1)).unflatten(0, (repeated, 5))[:, 2:]
    torch.manual_seed(7)
    with whole_batch(ranks, net):
        found = net(x[:, 2:].flatten(0, 1))
    assert torch.equal(found, expected.flatten(0, 1)) and "forward" not in vars(net[0])


class Noisy(nn.Module):
    """Draws by itself."""

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


def train_noisy() -> None:
    vae = build("vmm", plain, seed=1)
    vae.encoder.body.append(Noisy())
    Trainer(vae, config(epochs=2, batch_size=7)).fit(data(), progress=False)


def test_a_network_that_draws_by_itself_is_refused(two):
    for each in two.run(train_noisy):
        assert isinstance(each, ValueError) and "differ in their random_numbers" in str(each)
        assert "expected networks to draw random numbers by layers of torch.nn alone" in str(each)


def fit_cells() -> dict:
    """All that an estimator of cells has: BatchNorm, dropout, library sizes, batch balance, settling."""
    settings = {"latent_dim": 2, "hidden": (8,), "n_components": 5, "batch_size": 16, "epochs": 5, "dtype": "float64"}
    model = SingleCellVMM("batch", library="inferred", **settings, random_state=0, device="cpu")
    model.fit(planted())
    found = {"labels": model.labels_, "weights": model.weights_, "history": model.history_.to_dict("list")}
    return {**found, "state": dict(model.vae_.state_dict())}


def test_cells(two):
    alone = fit_cells()
    assert alone["state"]["balance.cells"].sum() > 10
    for each in two.run(fit_cells):
        assert_close(alone, each, 1e-7)


def fit_unseeded() -> tuple:
    np.random.seed(Ranks.present().rank)  # noqa: NPY002 - the global stream is the point
    X = data().numpy()
    model = VMM(4, 2, hidden=(8,), batch_size=16, epochs=3, monitor="val_nmi", device="cpu")
    model.fit(X, np.arange(len(X)) % 2)
    return model.seed_, model.labels_, model.history_["val_nmi"].tolist()


def test_an_estimator_without_a_seed_takes_the_first_ones(two):
    left, right = two.run(fit_unseeded)
    assert_close(left, right, 0.0)


# Who reads, meets and writes


class Recorder:
    """Rows that remember what was read."""

    def __init__(self, x: torch.Tensor):
        self.x, self.seen = x, []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        self.seen += index.tolist()
        return self.x[index]


def read_and_meet() -> tuple[list, list, int]:
    """Rows read in an epoch, and in validation; how often the processes met in the epoch."""
    x, x_val, met = Recorder(data()), Recorder(data(21)), []
    trainer, real = Trainer(build(), config()), dist.all_reduce
    dist.all_reduce = lambda *args: met.append(args) or real(*args)
    try:
        trainer.train_epoch(x, lambda rows: None)
        trainer.evaluate(x_val)
    finally:
        dist.all_reduce = real
    return x.seen, x_val.seen, len(met)


def test_each_reads_its_rows_and_they_meet_once_a_step(two):
    (rows, val, met), (other_rows, other_val, _) = two.run(read_and_meet)
    assert len(rows) == len(other_rows) == 25
    assert sorted(rows + other_rows) == list(range(50)) and sorted(val + other_val) == list(range(21))
    assert met == 4 * 2 + 5, "two steps on four minibatches; objectives, three of the components, the validation ELBO"


def fit_with_callbacks(stops_in: int) -> tuple[int, int, bool]:
    """Epochs trained, checkpoints and whether there is a bar, where one process's callback stops in epoch 2."""
    ranks, written, bars = Ranks.present(), [], []
    trainer, x = Trainer(build(), config(checkpoint_every=1)), data()
    import pyro_vmm.inference.trainer as module

    real = module._bar
    module._bar = lambda progress, *args: bars.append(progress) or real(False, *args)
    try:
        stop = lambda row, vae: row["epoch"] == 2 and ranks.rank == stops_in  # noqa: E731
        trainer.fit(x, x[:20], callbacks=[stop], checkpoint=written.append)
    finally:
        module._bar = real
    return len(trainer.history), len(written), bars[0]


@pytest.mark.parametrize("stops_in", [0, 1])
def test_one_callback_stops_all_and_the_first_process_writes(stops_in, two):
    assert two.run(fit_with_callbacks, stops_in) == [(2, 3, True), (2, 0, False)]


def stop_early() -> dict:
    x = data()
    trainer = Trainer(build(), config(epochs=200, patience=2, learning_rate=0.05))
    trainer.fit(x, x[:20], progress=False)
    return {"best": trainer.best, "epochs": len(trainer.history), "model": state(trainer.vae)}


def test_early_stopping(two):
    alone = stop_early()
    assert alone["epochs"] < 200 and alone["best"]["epoch"] == alone["epochs"] - 2
    for each in two.run(stop_early):
        assert_close(alone, each, 1e-6)


# Resuming


def interrupted(epochs: int = 3) -> list[dict]:
    """Checkpoints of a training that Ctrl-C ends in its epoch after these."""
    x, checkpoints = data(), []

    def press(row, vae):
        if row["epoch"] == epochs + 1:
            raise KeyboardInterrupt

    trainer = Trainer(build(networks=noisy), config())
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, x[:20], callbacks=[press], checkpoint=checkpoints.append, progress=False)
    return checkpoints


def resume(checkpoint: dict | None, seed: int = 8) -> dict:
    x, trainer = data(), Trainer(build(networks=noisy, seed=seed), config())
    if checkpoint is not None:
        trainer.load_state_dict(checkpoint)
    trainer.fit(x, x[:20], progress=False)
    return trainer.state_dict()


def test_resuming_on_another_number_of_processes(two):
    whole, (ours, _) = resume(None, seed=1), two.run(resume, None, 1)
    [[checkpoint], nothing], [alone] = two.run(interrupted), interrupted()
    assert not nothing and len(checkpoint["history"]) == len(alone["history"]) == 3
    assert_close(two.run(resume, checkpoint)[0], ours, 0.0)
    assert_close(resume(checkpoint), whole)
    for each in two.run(resume, alone):
        assert_close(each, whole)


# What goes wrong


def diverge() -> tuple[str, dict]:
    """In the third epoch, by a row that one process has."""
    x = data()
    trainer = Trainer(build(), config())

    def spoil(row, vae):
        if row["epoch"] == 2:
            x[7] = float("nan")

    with pytest.raises(TrainingDiverged) as error:
        trainer.fit(x, callbacks=[spoil], progress=False)
    return str(error.value), state(trainer.vae)


def test_divergence_is_told_by_all(two):
    (message, left), (other, right) = two.run(diverge)
    assert "elbo is nan in epoch 3" in message and message == other
    assert_close(left, right, 0.0)
    assert all(value.isfinite().all() for value in left.values())


def differ(what: str) -> str:
    rank = Ranks.present().rank
    trainer = Trainer(build(), config(seed=rank if what == "settings" else 0))
    with pytest.raises(ValueError, match="the 2 processes differ in their") as error:
        trainer.fit(data(50 + rank if what == "rows" else 50), progress=False)
    return str(error.value)


@pytest.mark.parametrize("what", ["settings", "rows"])
def test_processes_must_be_given_the_same(what, two):
    assert all(f"in their {what}" in message for message in two.run(differ, what))


def fit_from_anywhere() -> dict:
    trainer = Trainer(build(seed=Ranks.present().rank), config(epochs=1))
    trainer.fit(data(), progress=False)
    return state(trainer.vae)


def test_all_start_from_the_first_ones_parameters(two):
    left, right = two.run(fit_from_anywhere)
    assert_close(left, right, 0.0)


@pytest.mark.parametrize(
    ("device", "message"), [("cuda:0", "should have no number"), ("auto", "this machine has 1"), ("cuda", "has 1")]
)
def test_each_process_needs_a_gpu_of_its_own(device, message, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=message), process_group(device):
        pass


def test_without_torchrun_there_is_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")
    with process_group() as ranks:
        assert (ranks.rank, ranks.size) == (0, 1) and launched_rank() == 0 and not dist.is_initialized()


# torchrun

# The second process fails.
SCRIPT = """
import os, sys
from pyro_vmm import VMM, cli
fit = VMM.fit
def breaks(row, vae):
    if row["epoch"] == 3 and os.environ["RANK"] == "1":
        raise RuntimeError("out of luck")
VMM.fit = lambda self, *args, **kwargs: fit(self, *args, callbacks=[breaks], **kwargs)
sys.exit(cli.main())
"""


def torchrun(script: Path, *arguments) -> subprocess.CompletedProcess:
    """Run a script in two processes; ``TimeoutExpired``, and none of them left, if they do not end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, *arguments]
    with subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            out, err = started.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            started.terminate()  # which it passes on
            raise
    return subprocess.CompletedProcess(command, started.returncode, out, err)


@pytest.fixture
def options(tmp_path) -> list[str]:
    np.save(tmp_path / "x.npy", data().numpy())
    settings = {"hidden": 8, "components": 4, "latent-dim": 2, "epochs": 5, "batch-size": 16, "checkpoint-every": 1}
    settings |= {"device": "cpu", "dtype": "float64", "dataset": tmp_path / "x.npy"}
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)] + ["--quiet"]


@pytest.fixture
def one_process(monkeypatch, undrawn):
    """The command line in this process; t-SNE takes seconds and is tested with the plots."""
    real = plots.latent_map
    monkeypatch.setattr(plots, "latent_map", lambda z, *args, **options: real(z, *args, **options, method="pca"))
    return lambda *arguments: main([str(word) for word in arguments])


def interrupted_command(*arguments: str) -> tuple[int, str]:
    """The command in a process of two, which Ctrl-C ends in its third epoch: exit status and standard error."""
    ranks, fit, told = Ranks.present(), VMM.fit, io.StringIO()

    def press(row, vae):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    launched = {"WORLD_SIZE": str(ranks.size), "RANK": str(ranks.rank)}
    VMM.fit = lambda self, *args, **kwargs: fit(self, *args, callbacks=[press], **kwargs)
    os.environ.update(launched)
    try:
        with redirect_stderr(told):
            return main(arguments), told.getvalue()
    finally:
        VMM.fit = fit
        for name in launched:
            del os.environ[name]


def test_the_script_writes_one_folder_with_the_results_of_one_process(options, tmp_path, one_process, two):
    """Also where both processes were interrupted, and one process goes on."""
    one, both, broken = (tmp_path / name for name in ("one", "both", "broken"))
    assert one_process(*options, "--out", one) == 0
    done = torchrun(ROOT / "scripts" / "fit.py", *options, "--out", both)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("clusters used") == 1
    (status, told), (other_status, other_told) = two.run(interrupted_command, *options, "--out", str(broken))
    assert status == other_status == 130 and f"continue with --resume {broken}" in told and not other_told
    assert one_process("--resume", broken, "--quiet") == 0
    for other in (both, broken):
        assert sorted(path.name for path in other.iterdir()) == sorted(path.name for path in one.iterdir())
        left, right = (pd.read_csv(folder / "assignments.csv") for folder in (one, other))
        pd.testing.assert_frame_equal(left, right, rtol=1e-6)
        np.testing.assert_allclose(np.load(other / "latent.npy"), np.load(one / "latent.npy"), rtol=1e-6)


def test_a_process_that_fails_ends_the_others(options, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    failed = torchrun(tmp_path / "script.py", *options, "--out", tmp_path / "run")
    assert failed.returncode != 0 and "out of luck" in failed.stderr
    assert not (tmp_path / "run" / "model.pt").exists()
    assert len(torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["trainer"]["history"]) >= 2


def test_one_that_lost_the_other_says_so(tmp_path):
    pair = Processes(2, tmp_path)
    try:
        assert pair.run(stop_early)
        pair.processes.pop().kill()
        pair.pipes.pop()
        [error] = pair.run(stop_early)
        assert isinstance(error, ConnectionError) and "another process of this training has ended" in str(error)
    finally:
        pair.end()
