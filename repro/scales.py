"""The scales of the experiments: the paper's, the same sooner, a small one, and one for tests."""

from dataclasses import dataclass, field, replace

from pyro_vmm.estimators.presets import PAPER

CLASSES = 10
BUNDLED = ("iris", "wine", "breast_cancer", "digits")
GENERATED = ("blobs", "anisotropic", "gaussians_50d", "gaussians_60k")


def tabular(
    n_components: int = 50, hidden: int = 64, epochs: int = 500, steps: int = 3000, max_iter: int = 500
) -> dict[str, dict]:
    """The settings of the methods on tables; :mod:`repro.tabular` explains them, and applies them to a table.

    Arguments:
        n_components: the most components of the VMM and of scikit-learn's mixture.
        hidden: the width of the VMM's two layers.
        epochs, steps: the most epochs and steps of the VMM.
        max_iter: the most iterations of scikit-learn's mixture.
    """
    vmm = {
        "n_components": n_components,
        "latent_dim": 10,
        "hidden": [hidden, hidden],
        "hyperprior": "reference",
        "scaling": None,
        "batch_size": 256,
        "learning_rate": 2e-3,
        "decay_fraction": 0.0,
        "patience": None,
        "freeze_after": None,
        "validation_fraction": 0.1,
    }
    return {
        "k_means": {"n_init": 10},
        "mixture": {"n_components": n_components, "max_iter": max_iter},
        "hdbscan": {"least_rows": 5, "least_share": 1 / 256},
        "vmm": {
            "estimator": vmm,
            "epochs": epochs,
            "steps": steps,
            "fall": 2.0,
            "m_prior": 256,
        },
    }


@dataclass(frozen=True)
class Scale:
    """The settings of a scale.

    Arguments:
        trials: the default number of trials.
        latent_dims: D by data set; the first data set is that of figure 1, the last that of table 2 and figure 4.
        rows: the number of images, the first of the data set; None for all.
        shared: settings of every estimator.
        ours: further settings of the four priors.
        vade: further settings of VaDE.
        configurations: the settings that are compared, by name; the figures show the first.
        surgery: settings of table 2's fits.
        n_samples: draws for each row in table 2.
        n_marginal: those of them at which q(z) is evaluated; None for all.
        sweep: the batch sizes, and the values of ``m_prior``, of figure 3.
        cell_sets: data sets of tables 3 and 4.
        cell_epochs: the most epochs on cells; None for the methods' own.
        varied_sets: data sets of presets, ablation and sensitivity.
        component_counts, varied_dims: K and D of sensitivity, in addition to table 1's.
        gmvae_components: K of the GMVAE in table 1, in addition to ten; keys of ``images.GMVAES``.
        tables: tables with known classes, names in ``tabular.TABLES``.
        tabular: the settings of each method on these tables.
    """

    trials: int
    latent_dims: dict[str, int]
    rows: int | None
    shared: dict
    ours: dict
    vade: dict
    configurations: dict[str, dict]
    surgery: dict
    n_samples: int = 100
    n_marginal: int | None = None
    sweep: tuple[int, ...] = (128, 256, 512, 1024)
    cell_sets: tuple[str, ...] = ("kang_ifnb_2800", "sc_mixology_celllines", "pbmc_facs_zheng")
    cell_epochs: int | None = None
    varied_sets: tuple[str, ...] = ("mnist",)
    component_counts: tuple[int, ...] = (20, 50, 100, 200, 500)
    varied_dims: tuple[int, ...] = (2, 5, 10, 20, 30)
    gmvae_components: tuple[int, ...] = (16, 30)
    tables: tuple[str, ...] = (*BUNDLED, *GENERATED)
    tabular: dict[str, dict] = field(default_factory=lambda: tabular())
    baselines: dict = field(default_factory=lambda: {"n_init": 10, "max_iter": 500, "n_components": 100})


LABELS, LABEL_FREE = {"monitor": "val_nmi"}, {"monitor": "val_elbo"}


def _paper(*names: str) -> dict:
    """The paper's settings of these names."""
    return {name: PAPER[name] for name in names}


FULL = Scale(
    trials=10,
    latent_dims={"mnist": 10, "fashion_mnist": 30},
    rows=None,
    # 60,000 images to train on and 10,000 held back.
    shared={
        **_paper("batch_size", "learning_rate", "decay_fraction", "epochs", "patience", "likelihood_options"),
        "hidden": list(PAPER["hidden"]),
        "validation_fraction": 1 / 7,
    },
    # The hyper-prior and the start are those of the authors' code, which made the published numbers.
    ours={
        "n_components": 100,
        "m_prior": 256,
        **_paper("hyperprior", "covariance_start", "settle"),
    },
    vade={
        "covariance": "full",
        "covariance_start": "random",
        "pretraining_epochs": 13,
        "pretraining_learning_rate": 2e-3,
    },
    configurations={"labels": LABELS, "label-free": LABEL_FREE},
    surgery={"epochs": 500, "patience": 20, **LABEL_FREE},
    cell_sets=("cortex", "pbmc", "split_seq", "lung_atlas", *Scale.cell_sets),
    varied_sets=("mnist", "fashion_mnist"),
    tabular=tabular(n_components=100, hidden=128, steps=10_000),
)

# The paper's images, networks and noise at the start. Five times its rate, falling to nothing over the second half, for
# a hundred epochs come to as much training as its five hundred of table 2.
FAST = replace(
    FULL,
    trials=1,
    shared={
        **FULL.shared,
        "learning_rate": 5 * PAPER["learning_rate"],
        "decay_fraction": 0.5,
        "epochs": 100,
        "patience": None,
    },
    ours={**FULL.ours, "covariance_start": "diagonal"},
    vade={**FULL.vade, "covariance_start": "diagonal"},
    configurations={"label-free": LABEL_FREE},
    surgery=LABEL_FREE,
    n_marginal=10,
)

SCALES = {
    "full": FULL,
    "fast": FAST,
    # Small networks, to take minutes. Iterations are far fewer than at full scale, so the rate is larger and falls.
    "small": Scale(
        trials=3,
        latent_dims={"mnist": 10, "fashion_mnist": 30},
        rows=10_000,
        shared={
            "hidden": [256, 256],
            "batch_size": 256,
            "learning_rate": 1e-3,
            "decay_fraction": 0.5,
            "epochs": 100,
            "patience": None,
            "validation_fraction": 0.1,
            "likelihood_options": {"initial_scale": 1.0},
        },
        ours={"n_components": 100, "m_prior": 256, "hyperprior": "reference", "settle": False},
        # The pre-training has as many iterations as at full scale, some 3,000.
        vade={"covariance": "full", "pretraining_epochs": 85, "pretraining_learning_rate": 2e-3},
        configurations={"label-free": LABEL_FREE},
        surgery={"patience": 20, **LABEL_FREE},
    ),
    # For tests, which check that it works, not how well.
    "tiny": Scale(
        trials=2,
        latent_dims={"digits": 2},
        rows=300,
        shared={
            "hidden": [16],
            "batch_size": 100,
            "learning_rate": 1e-3,
            "decay_fraction": 0.0,
            "epochs": 2,
            "patience": None,
            "validation_fraction": 0.2,
            "checkpoint_every": 1,
        },
        ours={"n_components": 12, "m_prior": 100, "settle": False},
        vade={"covariance": "full", "pretraining_epochs": 1},
        configurations={"labels": LABELS, "label-free": LABEL_FREE},
        surgery=LABEL_FREE,
        n_samples=5,
        sweep=(50, 100),
        cell_sets=Scale.cell_sets[:1],
        cell_epochs=2,
        varied_sets=("digits",),
        component_counts=(6, 12),
        varied_dims=(2, 3),
        gmvae_components=(),
        tables=("iris", "blobs"),
        tabular=tabular(n_components=12, hidden=8, steps=20, max_iter=20),
        baselines={"n_init": 1, "max_iter": 20, "n_components": 12},
    ),
}
