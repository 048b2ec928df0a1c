"""Map new cells onto a fitted model of cells: what is known stays as it is.

Source: Lotfollahi et al., Mapping single-cell data to reference atlases by transfer learning, Nature Biotechnology
40:121, 2022 (scArches).
"""

import warnings
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor

from pyro_vmm.data.categories import FEW_CELLS, Categories
from pyro_vmm.data.cell_rows import CellRows, Covariates
from pyro_vmm.data.genes import GeneMatch, positions_by
from pyro_vmm.estimators import choices
from pyro_vmm.inference import Trainer, TrainingConfig
from pyro_vmm.inference.settling import ROWS_AT_ONCE, encode, places, sharpened, some_rows
from pyro_vmm.models import SingleCellVAE
from pyro_vmm.models.growth import with_batches, with_components
from pyro_vmm.networks import inference_mode
from pyro_vmm.priors import Prior
from pyro_vmm.priors.evidence import least_rows
from pyro_vmm.priors.groups import find_groups
from pyro_vmm.priors.moves import compact, find_components
from pyro_vmm.runtime.checks import check_choice, check_positive, check_share, check_whole, quoted
from pyro_vmm.runtime.exclusive import exclusive
from pyro_vmm.runtime.rows import read
from pyro_vmm.runtime.settings import AUTO, Auto

if TYPE_CHECKING:
    from anndata import AnnData

#: What ``new_clusters`` may be.
NEW_CLUSTERS = (None, AUTO)
# New components there may be.
MOST_NEW = 50
# New components may have so many times as many of the query's cells as are novel: novelty misses some.
MOST_SHARE = 1.25
# Blocks of a file that are shuffled together: a quarter of those of a fit. Only the columns of new batches are trained,
# and the memory that mapping takes is that of a pool and of the next one.
POOL_BLOCKS = 64


@dataclass(frozen=True)
class QueryTraining:
    """How the columns of new batches are trained.

    Arguments:
        epochs: at most so many passes over the cells of new batches; "auto" for 5 / learning_rate steps, at least 10
            passes.
        learning_rate: of Adam; over the second half of the epochs it falls to nothing.
        batch_size: cells in a minibatch.
    """

    epochs: int | Auto = AUTO
    learning_rate: float = 5e-3
    batch_size: int = 128

    def __post_init__(self):
        if self.epochs != AUTO:
            check_whole("epochs", self.epochs)
        check_positive("learning_rate", self.learning_rate)
        check_whole("batch_size", self.batch_size)

    def config(self, rows: int, seed: int) -> TrainingConfig:
        """For so many cells."""
        chosen = asdict(self)
        if self.epochs == AUTO:
            chosen["epochs"] = choices.choose_epochs(rows, self.batch_size, self.learning_rate)
        return TrainingConfig(**chosen, decay_fraction=0.5, patience=None, freeze_after=None, seed=seed)


@dataclass(frozen=True)
class Mapped:
    """One call of ``map_query``, as the new model remembers it.

    Arguments:
        n_batches: B before it.
        n_components: K before it.
        cells: how many were mapped.
        elbo: the mean ELBO of each epoch of training, in nats; empty where nothing was trained.
    """

    n_batches: int
    n_components: int
    cells: int
    elbo: tuple[float, ...]


# Genes


def match_query(
    adata: "AnnData", genes: np.ndarray, vae: SingleCellVAE, key: str | None, most_missing: float
) -> GeneMatch:
    """Where these cells have the names of their genes; warns of genes that they lack.

    Arguments:
        adata: cells.
        genes: of the model, (G,).
        vae: the model, which knows what shares of the counts they have.
        key: the column of ``adata.var`` to find them in; None for their names.
        most_missing: the share of counts that missing genes may have.

    Raises:
        ValueError: no gene is there, or the missing ones have too large a share.
    """
    check_share("most_missing", most_missing)
    missing = positions_by(adata, genes, key) < 0
    if not missing.any():
        return GeneMatch(key)
    shares = expected_shares(vae)
    share = float(missing.mean() if shares is None else shares[missing].sum())
    of = "genes" if shares is None else "counts"
    they = "this one has" if missing.sum() == 1 else "these have"
    lacking = (
        f"adata lacks {missing.sum()} of the {len(genes)} genes of the model; {they} {share:.1%} of the reference's "
        f"{of}: {quoted(genes[missing], 5)}"
    )
    if share > most_missing:
        hint = "" if key is not None else "; if its genes go by other names, name the column of adata.var as gene_key"
        raise ValueError(f"{lacking}; at most {most_missing:.1%} may be missing (most_missing){hint}")
    warnings.warn(f"{lacking}; they count as zero", stacklevel=3)
    return GeneMatch(key, tuple(genes[missing]))


@torch.no_grad()
def expected_shares(vae: SingleCellVAE) -> np.ndarray | None:
    """Of the counts that the model expects, the share of each gene, (G,); None where values are no counts.

    The mean over clusters of the expression at their centres, in the middle of all batches.
    """
    if not vae.likelihood.counts:
        return None
    with exclusive(), inference_mode(vae):
        p_z = vae.prior(vae.encoder)
        expression = vae.likelihood.expression(vae.decoder(p_z.loc, vae.layout.middle(p_z.loc)))
    return (p_z.weights @ expression).double().cpu().numpy()


# Batches


def new_batches(adata: "AnnData", known: Covariates, key: str | None) -> tuple[Covariates, int]:
    """The covariates with the batches of these cells, and how many of them are new.

    Arguments:
        adata: cells.
        known: what the reference knows.
        key: the column of batches; None for that of the reference, if it has one.
    """
    own = known.categorical[0]
    if key is None:
        if own is None:
            return known, 0
        key = own.key
    found = Categories.of(adata, key)
    new = [name for name in found.names if name not in known.batches]
    if new:
        found.check_number(adata.n_obs)
    return known.with_batches(key, new), len(new)


def warn_of_few_cells(covariates: Covariates, batch: Tensor, n: int) -> None:
    """One warning, if there are fewer than ten cells in some of the n last batches; ``batch`` (N,) is that of cells."""
    sizes = torch.bincount(batch, minlength=len(covariates.batches))[-n:]
    few = [name for name, size in zip(covariates.batches[-n:], sizes, strict=True) if size < FEW_CELLS]
    if few:
        warnings.warn(
            f"fewer than {FEW_CELLS} cells in {len(few)} of {n} new batches, {quoted(few, 3)}, from which little can "
            "be learned",
            stacklevel=3,
        )


def library_moments(design: Tensor, batch: Tensor, known: int, n: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of the logarithm of library sizes in each of n batches after the known ones, (n,) each.

    Arguments:
        design: covariates and library sizes, (N, P + 1).
        batch: of each cell, (N,).
    """
    logs = [design[batch == known + i, -1].log() for i in range(n)]
    return torch.stack([each.mean() for each in logs]), torch.stack([each.var(correction=0) for each in logs])


def learn_batches(
    vae: SingleCellVAE, rows: CellRows, batch: Tensor, n: int, how: QueryTraining, seed: int, progress: bool
) -> tuple[SingleCellVAE, list[float]]:
    """A model that takes n further batches, trained on their cells, and the ELBO of each epoch.

    Arguments:
        vae: the reference's.
        rows: all cells, as the new model reads them.
        batch: of each cell, (N,).
        n: how many batches are new.
        how, seed, progress: of the training.
    """
    known = vae.layout.n_batches
    moments = None if vae.library is None else library_moments(rows.design, batch, known, n)
    grown = with_batches(vae, n, moments)
    of_new = rows.subset(torch.nonzero(batch >= known)[:, 0].numpy(), pool_blocks=POOL_BLOCKS)
    trainer = Trainer(grown, how.config(len(of_new), seed))
    history = trainer.fit(of_new, progress=progress)
    return grown.requires_grad_(False), [row["elbo"] for row in history]


def check_new_clusters(new_clusters: str | None, novel_below: float, prior: Prior) -> None:
    """Raise ``ValueError`` for anything but None or "auto", a threshold that is no probability, or an unfit prior."""
    check_choice("new_clusters", new_clusters, NEW_CLUSTERS)
    check_share("novel_below", novel_below)
    if new_clusters is not None and not prior.can_place:
        raise ValueError(
            f"new_clusters={new_clusters!r} needs a prior that components can be added to, not a {type(prior).__name__}"
        )


# Clusters


def warn_of_no_cluster(novel: int, n: int, novel_below: float, latent_dim: int) -> None:
    """Warn that of n cells so few are novel, or so few of one kind, that no cluster was added for them."""
    warnings.warn(
        f'new_clusters="auto" added no cluster: {novel} of {n} cells have a novelty below {novel_below}, and a cluster '
        f"takes {least_rows(latent_dim)} that lie together",
        stacklevel=5,
    )


def new_components(
    vae: SingleCellVAE, rows: CellRows, novel: np.ndarray, known: int, seed: int
) -> tuple[SingleCellVAE, np.ndarray]:
    """A model with components for the cells at these positions (M,), and the cluster of each of those, from 0.

    They are found as those of a fit are (:mod:`pyro_vmm.priors.moves`), among these cells alone. Components of too few
    cells to fill a covariance are left out.

    Arguments:
        vae: the model that reads these cells.
        rows: all of the query's cells.
        novel: positions of those that no cluster explains.
        known: how many cells the components of ``vae`` stand for.
        seed: the seed of the choice of cells, if there are more than settling looks at.
    """
    some = torch.as_tensor(novel)[some_rows(len(novel), seed)]
    least = least_rows(vae.prior.latent_dim)
    if len(some) < least:
        return vae, np.empty(0, int)
    encoded = encode(vae, rows, some)
    sharp, family = sharpened(encoded), vae.prior.covariance
    labels = find_components(sharp, np.zeros(len(some), int), MOST_NEW, family.vague, family.fitted)
    large = np.bincount(labels) >= least
    if not large.any():
        return vae, np.empty(0, int)
    kept = large[labels]
    labels, encoded, sharp, some = compact(labels[kept]), encoded[kept], sharp[kept], some[torch.as_tensor(kept)]
    found = places(vae, rows, some, encoded, labels)
    share = found.count * (len(novel) / max(len(kept), 1) / known)
    with exclusive(), inference_mode(vae):
        grown = with_components(vae, found, share)
    _lower_weights(grown, vae.prior.n_components, rows, len(novel) * kept.mean())
    return grown, find_groups(sharp, labels)


@torch.no_grad()
def _lower_weights(vae: SingleCellVAE, known: int, rows: CellRows, novel: float) -> None:
    """Lower the weights of new components until they have hardly more of the query's cells than are novel.

    Known cells of a new batch may lie so far out in their own clusters that new components would take them, too.

    Arguments:
        vae: the model, whose components from ``known`` on are new.
        rows: all of the query's cells.
        novel: how many cells the new components stand for.
    """
    odds = []
    with exclusive():
        clustering = vae.prior.clustering(vae.encoder)
    with inference_mode(vae), closing(read(rows, torch.arange(len(rows)).split(ROWS_AT_ONCE))) as blocks:
        for cells in blocks:
            with exclusive():
                new = clustering.responsibilities(vae.encoder(cells).mean)[:, known:].sum(-1).double()
            odds.append(torch.logit(new, eps=1e-12).cpu().numpy())
    log_odds = np.concatenate(odds)

    def excess(shift: float) -> float:
        return float(expit(log_odds + shift).sum()) - MOST_SHARE * novel

    if excess(0.0) > 0:
        vae.prior.get_parameter("pi_logits")[known:] += brentq(excess, -100.0, 0.0)
