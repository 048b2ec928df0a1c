"""Full MNIST at the paper's settings, epoch by epoch: ELBO, clusters, NMI and accuracy on the 10,000 test images.

    python benchmarks/mnist_curve.py --out runs/mnist_curve --preset reference

Batch 256, Adam at 1e-4 for both steps, K = 100, D = 10, encoder [500, 500, 2000], pseudo-inputs from random images,
no label used in training. Writes ``curve.csv`` after every epoch and a checkpoint every ten; run again to continue.
"""

import argparse
import csv
from pathlib import Path

import torch

from pyro_vmm import files
from pyro_vmm.data.images import load_mnist
from pyro_vmm.likelihoods import Normal
from pyro_vmm.metrics import clustering_scores
from pyro_vmm.models import VAE
from pyro_vmm.networks import Decoder, GaussianEncoder, inference_mode, mlp
from pyro_vmm.priors import VampMixture
from pyro_vmm.training import Trainer, TrainingConfig

HIDDEN = (500, 500, 2000)
COLUMNS = [
    "epoch",
    "seconds",
    "train_elbo",
    "val_elbo",
    "n_active",
    "test_clusters",
    "test_nmi",
    "test_ari",
    "test_accuracy",
]


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
    encoder = GaussianEncoder(mlp(event_shape.numel(), HIDDEN), HIDDEN[-1], latent_dim)
    decoder = Decoder(mlp(latent_dim, HIDDEN[::-1]), HIDDEN[0], event_shape)
    return VAE(encoder, decoder, Normal(event_shape), prior)


@torch.no_grad()
def scores(vae: VAE, x: torch.Tensor, labels) -> dict:
    """Clustering scores of rows x by one draw of q(z; x) each, as the authors evaluate images."""
    with inference_mode(vae), torch.random.fork_rng():
        torch.manual_seed(0)
        z = torch.cat([vae.encoder(batch).sample() for batch in x.split(1000)])
        return clustering_scores(labels, vae.cluster_probabilities(z).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--preset", choices=["paper", "reference"], default="reference")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--m-prior", type=float, default=256)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    data = load_mnist(args.data_dir)
    x = 2 * torch.as_tensor(data.x) - 1  # the authors train on [-1, 1]
    train, test = x[:60000], x[60000:]
    torch.manual_seed(args.seed)
    vae = build(train, 10, 100, args.preset, args.m_prior)
    trainer = Trainer(
        vae,
        TrainingConfig(epochs=args.epochs, learning_rate=args.learning_rate, patience=None, seed=args.seed),
    )
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load_state_dict(files.load(checkpoint, "checkpoint")["trainer"])

    def report(row: dict, vae: VAE) -> None:
        found = scores(vae, test, data.labels[60000:])
        line = [row["epoch"], row["seconds"], row["elbo"], row["val_elbo"], row["n_active"]]
        line += [found["utilised_clusters"], found["nmi"], found["ari"], found["accuracy_by_exemplar"]]
        path = args.out / "curve.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([COLUMNS] if new else [])
            writer.writerow([f"{value:.5g}" for value in line])

    trainer.fit(
        train,
        test,
        callbacks=[report],
        checkpoint=lambda state: files.save({"trainer": state}, checkpoint, "checkpoint"),
        progress=False,
    )
    everything = scores(vae, x, data.labels)
    print("all 70,000:", {name: round(float(value), 4) for name, value in everything.items()})


if __name__ == "__main__":
    main()
