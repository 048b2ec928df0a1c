"""Full MNIST at the paper's settings, epoch by epoch: ELBO, clusters, NMI and accuracy on the 10,000 test images.

    python benchmarks/mnist_curve.py --out runs/mnist_curve --preset reference

Batch 256, Adam at 1e-4 for both steps, K = 100, D = 10, encoder [500, 500, 2000], pseudo-inputs from random images,
no label used in training. It writes ``curve.csv`` after every epoch and a checkpoint every ten; run it again to
continue, with ``--epochs`` of the last checkpoint to end there. At the end it scores all 70,000 images and draws
``components.png``, the paper's figure 1, and ``curve.png`` beside ``reference_curve.csv``. The reference is a plain
PyTorch implementation of the reference preset (seed 0, no short last batch), which follows the authors' TensorFlow
code: their ELBO differs by 0.8 nats at epoch 4 and 1.3 at 14, their test NMI by 0.002 there.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from pyro_vmm import plots
from pyro_vmm.data.images import load_mnist
from pyro_vmm.evaluation.clustering import clustering_scores
from pyro_vmm.inference import Trainer, TrainingConfig
from pyro_vmm.likelihoods import Normal
from pyro_vmm.models import VAE
from pyro_vmm.networks import Decoder, GaussianEncoder, inference_mode, mlp
from pyro_vmm.priors import VampMixture
from pyro_vmm.runtime import files

HIDDEN = (500, 500, 2000)
REFERENCE = Path(__file__).with_name("reference_curve.csv")
#: The paper's table 1, mean over ten trials that stopped on labelled validation NMI.
PAPER_NMI = 0.899


def build(x: torch.Tensor, latent_dim: int, n_components: int, preset: str, m_prior: float) -> VAE:
    """The paper's model of images x (N, 28, 28)."""
    event_shape = x.shape[1:]
    rows = torch.randperm(len(x))[:n_components]
    prior = VampMixture(
        latent_dim,
        x[rows],
        hyperprior=preset,
        m_prior=m_prior,
        responsibilities="differentiated" if preset == "reference" else "held",
    )
    # The reference curve has the authors' start, too.
    features = mlp(event_shape.numel(), HIDDEN)
    encoder = GaussianEncoder(features, HIDDEN[-1], latent_dim, covariance_start="random")
    decoder = Decoder(mlp(latent_dim, HIDDEN[::-1]), HIDDEN[0], event_shape)
    return VAE(encoder, decoder, Normal(event_shape), prior)


@torch.no_grad()
def probabilities(vae: VAE, x: torch.Tensor) -> np.ndarray:
    """q(c | z) of rows x, (N, K), with one draw of q(z; x) each, as the authors evaluate images."""
    with inference_mode(vae), torch.random.fork_rng():
        torch.manual_seed(0)
        z = torch.cat([vae.encoder(batch).sample() for batch in x.split(1000)])
        return vae.cluster_probabilities(z).numpy()


def report(row: dict, scores: dict, path: Path) -> None:
    """Add an epoch to the curve; drop later epochs that an earlier run left."""
    line = {
        "epoch": row["epoch"],
        "seconds": row["seconds"],
        "train_elbo": row["elbo"],
        "val_elbo": row["val_elbo"],
        "n_active": row["n_active"],
        "test_clusters": scores["utilised_clusters"],
        "test_nmi": scores["nmi"],
        "test_ari": scores["ari"],
        "test_accuracy": scores["accuracy_by_exemplar"],
    }
    curve = pd.read_csv(path) if path.exists() else pd.DataFrame()
    earlier = curve[curve["epoch"] < row["epoch"]] if len(curve) else curve
    files.write_table(path, pd.concat([earlier, pd.DataFrame([line])]).round(4))


def draw_curve(curve: pd.DataFrame, learning_rate: float) -> Figure:
    """NMI, clusters and ELBO over epochs, beside the reference curve at the same rate."""
    reference = pd.read_csv(REFERENCE)
    reference = reference[reference["learning_rate"] == learning_rate]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = [
        ("test_nmi", "NMI on 10,000 test images"),
        ("test_clusters", "clusters used"),
        ("train_elbo", "ELBO, nats"),
    ]
    for axes, (column, title) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.plot(curve["epoch"], curve[column], label="pyro_vmm")
        axes.plot(reference["epoch"], reference[column], "--", label="reference curve")
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
    figure.axes[0].axhline(PAPER_NMI, color="grey", linewidth=1, label="paper, all images, at the end")
    figure.axes[0].legend()
    return figure


@torch.no_grad()
def draw_components(vae: VAE, x: torch.Tensor, found: np.ndarray) -> Figure:
    """The paper's figure 1 from probabilities ``found`` (N, K) of rows x."""
    p_z = vae.prior(vae.encoder)
    used = np.unique(found.argmax(1))
    weights = p_z.weights[used].numpy()
    rows = plots.samples_per_component(weights)
    samples = [vae.decoder(p_z.component(torch.full((n,), k)).sample()) for k, n in zip(used, rows, strict=True)]
    return plots.component_samples([s.numpy() for s in samples], weights, x[found[:, used].argmax(0)].numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--preset", choices=["paper", "reference"], default="reference")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--m-prior", type=float, default=256)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--decay-fraction", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    data = load_mnist(args.data_dir)
    x = 2 * torch.as_tensor(data.x) - 1  # the authors train on [-1, 1]
    train, test = x[:60000], x[60000:]
    torch.manual_seed(args.seed)
    vae = build(train, 10, 100, args.preset, args.m_prior)
    settings = {"epochs": args.epochs, "decay_fraction": args.decay_fraction, "learning_rate": args.learning_rate}
    settings |= {"patience": None, "seed": args.seed}
    trainer = Trainer(vae, TrainingConfig(**settings))
    checkpoint, curve = args.out / "checkpoint.pt", args.out / "curve.csv"
    if checkpoint.exists():
        trainer.load_state_dict(files.load(checkpoint, "checkpoint")["trainer"])

    trainer.fit(
        train,
        test,
        callbacks=[
            lambda row, vae: report(row, clustering_scores(data.labels[60000:], probabilities(vae, test)), curve)
        ],
        checkpoint=lambda state: files.save({"trainer": state}, checkpoint, "checkpoint"),
        progress=False,
    )
    found = probabilities(vae, x)
    scores = {name: round(float(value), 4) for name, value in clustering_scores(data.labels, found).items()}
    print(f"epoch {trainer.best['epoch']} of {len(trainer.history)}, all 70,000 images: {scores}")
    plots.save(draw_curve(pd.read_csv(curve), args.learning_rate), args.out / "curve.png")
    plots.save(draw_components(vae, x, found), args.out / "components.png")


if __name__ == "__main__":
    main()
