"""Tables of results, in files and on the terminal."""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import entr

from pyro_vmm.estimators.base import Estimator
from pyro_vmm.evaluation import clustering


def assignments(probabilities: np.ndarray, names: np.ndarray | None = None, kind: str = "row") -> pd.DataFrame:
    """The name of each row or cell, its ``cluster``, the cluster's ``probability``, and the ``entropy`` of q(c | x).

    Arguments:
        probabilities: q(c | x), (N, K); entropies are in nats.
        names: the name of each, (N,); by default its number.
        kind: the name of the column of names.
    """
    return pd.DataFrame(
        {
            kind: np.arange(len(probabilities)) if names is None else names,
            "cluster": probabilities.argmax(1),
            "probability": probabilities.max(1),
            "entropy": hesitation(probabilities),
        }
    )


def hesitation(probabilities: np.ndarray) -> np.ndarray:
    """The entropy of q(c | x), (N, K), in nats, (N,)."""
    return entr(probabilities).sum(1)


def clusters_line(model: Estimator, present: ArrayLike, unit: str) -> tuple[str, str]:
    """How many clusters win a row, and how many of these are too small to count, for :func:`pairs`.

    Arguments:
        model: a fitted model.
        present: the numbers of the clusters that win one, (n,).
        unit: what a row is called, in the plural.
    """
    strays = int(np.isin(present, model.strays_).sum())
    few = f"; {strays} {'is a stray' if strays == 1 else 'are strays'} of few {unit}" if strays else ""
    return "clusters used", f"{np.size(present)} of {model.n_components_}{few}"


def training_lines(model: Estimator, per: str) -> list[tuple[str, str]]:
    """The outcome of training, for :func:`pairs`; ``per`` is the unit of the ELBO, "row" or "cell"."""
    best = model.history_.iloc[model.best_epoch_ - 1]
    confidence, extra = model.confidence_, []
    if confidence is not None:
        extra = [("confidence", str(confidence)), *(("doubtful", doubt) for doubt in confidence.doubts)]
    if model.settled_ is not None:
        extra.append(("settling", str(model.settled_)))
    held_back = f"{best['val_elbo']:.2f} in validation" if np.isfinite(best["val_elbo"]) else "none held back"
    return [
        (f"ELBO per {per}", f"{best['elbo']:.2f} in training, {held_back}"),
        ("epochs", f"{model.n_iter_}, best {model.best_epoch_}"),
        ("seconds", f"{model.history_['seconds'].iloc[-1]:.1f}"),
        *extra,
    ]


def score_lines(
    name: str, used: str, units: str, labels: np.ndarray, probabilities: np.ndarray
) -> list[tuple[str, str]]:
    """Scores of q(c | x) against labels, for :func:`pairs`, below a line that says what these are.

    Arguments:
        name: of the labels.
        used: what for.
        units: the name of several rows.
        labels: of the rows, (N,); those with a missing one do not count.
        probabilities: q(c | x), (N, K).
    """
    known = ~pd.isna(labels)
    some = "" if known.all() else f"; {known.sum()} {units} have one"
    scores = clustering.clustering_scores(labels[known], probabilities[known])
    return [
        (f"{name} ({used}{some})", ""),
        ("  accuracy", f"{scores['accuracy_by_exemplar']:.3f} (majority {scores['accuracy_by_majority']:.3f})"),
        ("  NMI", f"{scores['nmi']:.3f}"),
        ("  ARI", f"{scores['ari']:.3f}"),
    ]


def pairs(lines: Sequence[tuple[str, str]]) -> str:
    """Names and values as text, with the values aligned in one column."""
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in lines)


def columns(lines: Sequence[Sequence[str]], texts: Collection[int] = ()) -> str:
    """Lines of equally many texts, as columns: those numbered ``texts`` align to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    alignments = ["<" if i in texts else ">" for i in range(len(widths))]
    padded = ([f"{text:{a}{n}}" for text, a, n in zip(line, alignments, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def abridged(texts: Sequence[str], limit: int, separator: str = " ") -> str:
    """The first ``limit`` texts, and the number of the others."""
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return separator.join(texts[:limit]) + more


def has_tree(model: Estimator) -> bool:
    """Whether a fitted model has clusters that could join."""
    tree = model.tree_
    return tree is not None and not tree["within"].all()
