"""The estimator of arrays: vectors, images, anything of shape (N, ...)."""

import numpy as np
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_vmm.estimators import starts
from pyro_vmm.estimators.array_estimator import ArrayEstimator
from pyro_vmm.estimators.chosen_prior import ChosenPrior
from pyro_vmm.estimators.explained_arrays import ExplainedArrays
from pyro_vmm.estimators.settings import ArraySettings
from pyro_vmm.likelihoods import Likelihood
from pyro_vmm.models import VAE
from pyro_vmm.priors import Prior
from pyro_vmm.priors.pseudo_inputs import PseudoInputs
from pyro_vmm.runtime.settings import settings


@settings
class VMM(ChosenPrior, ExplainedArrays, ArrayEstimator, ArraySettings):
    """Clustering, embedding and density estimation by a variational autoencoder with a mixture prior.

    Starts from ``n_components`` clusters and keeps those that the data need. Rows may be vectors, images or any arrays:
    X has shape (N, G) or (N, ...). Labels are never used, unless ``monitor="val_nmi"`` asks for them.

    Parameters of the model:
        n_components: K, the most clusters there can be; at most the number of rows.
        latent_dim: D.
        prior: "vmm" (the VampPrior Mixture Model), "gmm", "student_t" (a "gmm" of heavy tails), "vamp" or
            "standard_normal"; see :mod:`pyro_vmm.priors`. Or a class derived from :class:`~pyro_vmm.priors.Prior`, or
            ``functools.partial`` of one with some of its settings; or an object, which is copied. An object keeps its
            own settings and starting values (pseudo-inputs are rows as the model sees them, scaled), so that the
            settings of priors below stay at their defaults. So do settings that the prior does not take: other values
            of them are an error.
        likelihood: "normal", "bernoulli", "continuous_bernoulli", "student_t", "poisson", "categorical"; or a class
            derived from :class:`~pyro_vmm.likelihoods.Likelihood`; or an object of one, which is copied; or any
            callable from decoder output (N, ...) to a Pyro distribution over x. Class and object do as the name does.
        likelihood_options: arguments of the likelihood, such as ``{"scale": "per_feature", "initial_scale": 0.5}``; an
            object has its own. Where ``initial_scale`` is not given, the noise of "normal" and "student_t" starts
            where the variance of a row costs 200 nats. The number of categories is counted. A callable has the option
            ``outputs_per_feature`` alone.
        hidden: widths of the encoder's layers, mirrored in the decoder. "auto" is (128, 128) for rows of fewer than 256
            features, and (500, 500, 2000), the paper's for images, for others.
        scaling: "range" maps all features together to [-1, 1], right for images and features of one unit; "standard"
            gives each feature mean 0 and variance 1, right for tables; None leaves X alone. With a likelihood of any
            real values, such as "normal" and "student_t", "auto" is "standard" for a table (a DataFrame), and for an
            array (N, G) whose columns are in units of their own: two do not overlap, and one spans twenty times as much
            as the other. It is "range" for other arrays, and None with other likelihoods.
        encoder: "mlp", "conv" for images (N, H, W) or (N, C, H, W), or a module from x (N, ...) to features (N, H); or
            a callable that makes one of the shape of a row, (...); a callable may be called several times. Further
            names are in :data:`~pyro_vmm.networks.ENCODERS` and :data:`~pyro_vmm.networks.DECODERS`.
        decoder: "mlp", "conv", or a module from z (N, D) to features (N, H); or a callable that makes one of D.
        covariance: of q(z | x), "full" or "diagonal", which in twenty dimensions or more learns faster and clusters
            better.
        covariance_start: a full one starts "diagonal", or "random" as in the authors' code, which in many dimensions
            merges clusters; see :class:`~pyro_vmm.networks.GaussianEncoder`.

    Parameters of the prior:
        m_prior: granularity: a cluster survives if it explains more than about one row in ``m_prior``. "batch" for the
            rows of the minibatch at hand.
        hyperprior: "paper", "reference" (the authors' code) or a :class:`~pyro_vmm.priors.HyperPrior`.
        responsibilities: "differentiated" in the MAP step, as in the authors' code, or "held", as in the paper, which
            merges small or neighbouring clusters more.
        expectation: over the centres, "analytic" or "sampled".
        component_covariance: of the components of a mixture, "full", "diagonal", "tied" (one for all components) or
            "spherical"; see :mod:`pyro_vmm.priors.covariances`. ``covariance`` is that of q(z | x).
        component_df: degrees of freedom of a "student_t"'s components; None for 5.
        init: pseudo-inputs start from "random" or "k-means++" rows.
        train_pseudo_inputs: whether they are trained; else they stay at these rows, and centres move with the encoder.
        init_centres: a "gmm"'s centres start "normal", drawn from Normal(0, I), or "encoded", at the encoder's means of
            the rows of ``init``, where those of a "vmm" start.

    Parameters of training:
        monitor: what improvement is measured by: "val_elbo", or "val_nmi", which uses labels.
        epochs: at most so many passes over the data. "auto" makes 5 / ``learning_rate`` steps, and 10 passes at least.
        batch_size: rows in a minibatch. "auto" is a quarter of the rows, from 32 to 256.
        learning_rate: of the networks. "auto" is 2e-3, and less for layers of more than 128 units in the encoder, by
            the root of their width; with layers of other kinds than linear ones it is that of 2000 units.
        decay_fraction: share of the epochs, the last, over which the learning rates fall to zero.
        patience: stop after so many epochs without a better ``monitor``; None for never, "auto" for a third of them.
        checkpoint_every: epochs between checkpoints, if ``fit`` is given a file for them.
        prior_learning_rate: of the prior; None for that of the networks.
        plateau: once 200 steps raise the ELBO by fewer nats, the rates fall and training ends; None for never.
        reuse_draws: encode rows and pseudo-inputs once an iteration, not twice; see
            :class:`~pyro_vmm.inference.TrainingConfig`.
        freeze_after: components without rows leave training after so many epochs; None for never.
        capture: whether to record training steps and repeat the recording, for the same numbers sooner; see
            :class:`~pyro_vmm.inference.TrainingConfig`. On a GPU it is experimental.
        precision: of the networks' products in training: "float32", "bf16" or "tf32", see
            :mod:`pyro_vmm.runtime.precision`.
        settle: after training, split and merge components until the evidence of the encoded rows rises no more, and
            count those that nothing sets apart as one cluster; see :func:`~pyro_vmm.inference.settle`. False, as in the
            paper, leaves the components as they are, each a cluster.
        training: a :class:`~pyro_vmm.inference.TrainingConfig` with the settings from ``monitor`` to ``precision``, in
            place of the single ones.
        augment: changes of rows that leave their cluster the same: "affine" for images (N, H, W) or (N, C, H, W), a
            :class:`~pyro_vmm.data.RandomAffine`, or any callable from rows (M, ...) as the model sees them, in torch,
            to changed copies. The model then has a copy of each row, with a z and an x of its own, in the same
            component; training takes half as long again and more. None for none. A file does not keep a callable,
            which a fitted model does not need.
        validation_fraction: share of the rows held back for early stopping; 0 for none.

    Parameters of the machine:
        random_state: an int for the same numbers at every fit.
        device: "auto" (a GPU if there is one) or any torch device.
        dtype: "float32" or "float64".
        progress: show a progress bar.

    Attributes:
        labels_: the cluster of each row, (N,); clusters are numbered by weight, largest first.
        weights_: the weight of each cluster, (K,), falling; clusters that win no row come last, then zeros.
        n_clusters_: clusters, without strays.
        strays_: clusters of fewer rows than D + 2, too few to fill a covariance; their rows keep their label.
        components_: the component of each row, (N,): the parts that clusters are made up of.
        component_weights_: pi, (K,); ``cluster_of_component_`` is the cluster of each, (K,).
        confidence_: how far the clusters can be trusted, and ``confidence_.doubts`` in words; see
            :class:`~pyro_vmm.inference.confidence.Confidence`. None for files of earlier versions.
        tree_: how components join to clusters, and clusters to coarser ones, with the nats that each join costs; see
            :func:`~pyro_vmm.priors.tree.join_all`. None for files of earlier versions.
        settled_: how many components settling kept, made and merged away, see :class:`~pyro_vmm.inference.Moves`; None
            where they are as training left them, and for files of earlier versions.
        chosen_: the value chosen for each parameter that is "auto"; ``training_`` is the whole ``TrainingConfig``.
        history_: a DataFrame, one row per epoch.
        weight_history_: the weights of components at the end of each epoch of training, (epochs, K), in float32; NaN
            in epochs whose weights are unknown; None for files of earlier versions.
        successors_: the component that most rows of each of these went to when it was settled, (K,): itself if it was
            kept, -1 for one without rows; ``history_clusters_`` is the cluster of that component.
        vae_: the trained :class:`~pyro_vmm.models.VAE`.
        scaling_: the scaling chosen, "range", "standard" or None; the model sees (X - ``shift_``) / ``scale_``.
        n_iter_: epochs trained; ``best_epoch_`` is the one whose parameters were kept.
        learning_rates_: the learning rates, each with its first epoch; several if a diverged run went on at others.
        seed_: the seed that ``random_state`` gave.
        validation_rows_: positions of the training data's rows that were held back for early stopping.
        sample_weight_: the weights that ``fit`` was given, scaled to mean 1, (N,); None where all rows count the same.
            ``n_clusters_``, ``strays_`` and the order of clusters count each row with a weight once, ``confidence_``
            and ``tree_`` each by its weight.

    Examples:
        >>> from sklearn.datasets import load_digits
        >>> from pyro_vmm import VMM
        >>> X, _ = load_digits(return_X_y=True)
        >>> model = VMM(random_state=0)
        >>> clusters = model.fit_predict(X)
    """

    def merge(self, n_clusters: int, X) -> "VMM":
        """A copy with so many clusters: coarser, or with clusters parted into their components.

        The clusters join, or part, in the order of ``tree_``; the density stays as it is.

        Arguments:
            n_clusters: 1 for all rows in one, at most the number of components with rows; strays count.
            X: the rows that the model was fitted to, which are numbered anew.
        """
        check_is_fitted(self)
        return self._merged(n_clusters, self._rows(X))

    def _initial_rows(self, x: Tensor, weights: np.ndarray | None) -> Tensor:
        return starts.initial_rows(x, self.n_components_, self.init, self.seed_, weights)

    def _build_vae(self, likelihood: Likelihood, rows: Tensor) -> VAE:
        return self._networks(likelihood, rows, self.covariance, self.covariance_start)

    def _build_prior(self, rows: Tensor) -> Prior:
        return self._make_prior(PseudoInputs(rows).requires_grad_(bool(self.train_pseudo_inputs)))

    def _start_prior(self, vae: VAE, rows: Tensor) -> None:
        if vae.prior.free_centres and self.init_centres == "encoded":
            starts.encode_centres(vae, rows)
