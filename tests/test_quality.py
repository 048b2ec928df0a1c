"""What the library is for: on real data, without labels, clusters that agree with the classes better than k-means'."""

import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from pyro_vmm import VMM
from pyro_vmm.evaluation import clustering


def test_the_digits_fall_into_clusters():
    """The command's settings for a third of its steps."""
    torch.set_default_dtype(torch.float32)
    X, y = load_digits(return_X_y=True)
    model = VMM(epochs=120, random_state=0).fit(X)
    told_k = KMeans(10, n_init=10, random_state=0).fit_predict(X)
    assert clustering.nmi(y, model.labels_) > 0.83 > clustering.nmi(y, told_k) + 0.07
    assert 9 <= model.n_clusters_ <= 18
    assert clustering.accuracy_by_majority(y, model.labels_) > 0.85
