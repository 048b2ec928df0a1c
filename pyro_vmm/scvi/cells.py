"""Pack the dicts of tensors that a module of scvi-tools reads into rows of one tensor; and pseudo-cells."""

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy import sparse

# Where scvi-tools is not installed, pyright takes this folder for it.
from scvi import REGISTRY_KEYS  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor, nn
from torch.distributions import Normal

from pyro_vmm.networks import inference_mode
from pyro_vmm.priors.pseudo_inputs import Centres, InBatches, averaged

#: The measured values, which pseudo-cells train. Everything else that an encoder reads is held.
MEASURED = (REGISTRY_KEYS.X_KEY, REGISTRY_KEYS.PROTEIN_EXP_KEY, REGISTRY_KEYS.ATAC_X_KEY)
PseudoBatch = Literal["averaged", "held"]
PSEUDO_BATCHES = get_args(PseudoBatch)
# Rows of a matrix that are looked at together, and cells that are made dense together.
ROWS_AT_ONCE = 4096
READ_AT_ONCE = 128


class Field(NamedTuple):
    """One of the tensors (N, width) that a module reads.

    Arguments:
        key: its name in the registry of scvi-tools.
        width: the number of its columns.
        dtype: torch's name of its type, such as "int64".
    """

    key: str
    width: int
    dtype: str


class _Tensors(dict):
    """Tensors of cells by their key. Other keys give None: an encoder may read what a data module does not have."""

    def __missing__(self, key):
        return None


class _Read(_Tensors):
    """A dict that records which of its keys are read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.keys_read = []

    def __getitem__(self, key):
        if key in self:
            self.keys_read.append(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        return self[key] if key in self else default


class Layout:
    """The columns of a packed cell (W,): the measured values first, then the held ones.

    Arguments:
        fields: the fields that the encoder reads, measured ones first.
        n_batches: B, the number of batches in the training data.
        sees_batch: whether the encoder's output depends on the batch.
        counts: whether no measured value of any cell is negative.
    """

    def __init__(self, fields: Sequence[tuple], n_batches: int, sees_batch: bool, counts: bool):
        self.fields = [Field(*field) for field in fields]
        self.n_batches, self.sees_batch, self.counts = n_batches, sees_batch, counts
        self.n_measured = sum(field.width for field in self.fields if field.key in MEASURED)
        self.width = sum(field.width for field in self.fields)

    @classmethod
    def of(cls, module: nn.Module, tensors: Mapping[str, Tensor], n_batches: int) -> "Layout":
        """The layout of the fields that the encoder of a module reads from these cells.

        ``counts`` is that of these cells; other cells may have negative values.

        Raises:
            TypeError: the encoder reads no measured values.
        """
        tensors = _Read({key: value for key, value in tensors.items() if torch.is_tensor(value)})
        _inference_input(module, tensors)
        keys = dict.fromkeys(tensors.keys_read)
        ordered = [key for key in keys if key in MEASURED] + [key for key in keys if key not in MEASURED]
        fields = [Field(key, tensors[key].shape[1], str(tensors[key].dtype).removeprefix("torch.")) for key in ordered]
        if not ordered or ordered[0] not in MEASURED:
            raise TypeError(f"the encoder of {type(module).__name__} reads {ordered}, expected one of {MEASURED}")
        counts = all(bool((tensors[key] >= 0).all()) for key in ordered if key in MEASURED)
        layout = cls(fields, n_batches, False, counts)
        layout.sees_batch = layout._sees_batch(module, layout.pack(tensors))
        return layout

    @torch.no_grad()
    def _sees_batch(self, module: nn.Module, cells: Tensor) -> bool:
        """Whether the encoder's output differs between the first batch and the last."""
        if self.n_batches < 2 or self.batch_column is None:
            return False
        encoder = Encoder(module, self)
        with inference_mode(encoder):
            first, last = (encoder(self.in_batch(cells, b)).loc for b in (0, self.n_batches - 1))
        return not torch.equal(first, last)

    def to_dict(self) -> dict:
        """Plain values, from which ``Layout(**values)`` restores the layout."""
        fields = [tuple(field) for field in self.fields]
        return {"fields": fields, "n_batches": self.n_batches, "sees_batch": self.sees_batch, "counts": self.counts}

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Cells (N, W) from a dict of tensors (N, width)."""
        return torch.cat([tensors[field.key].float() for field in self.fields], -1)

    def unpack(self, cells: Tensor) -> dict[str, Tensor]:
        """The dict of tensors (N, width) that cells (N, W) were packed from."""
        parts = cells.split([field.width for field in self.fields], -1)
        return _Tensors(
            (field.key, part.to(getattr(torch, field.dtype))) for field, part in zip(self.fields, parts, strict=True)
        )

    @property
    def batch_column(self) -> int | None:
        """The column of a packed cell that holds its batch; None if the encoder does not read it."""
        start = 0
        for field in self.fields:
            if field.key == REGISTRY_KEYS.BATCH_KEY:
                return start
            start += field.width
        return None

    def in_batch(self, cells: Tensor, batch: int | Tensor) -> Tensor:
        """The same cells (N, W) in another batch, or each in its own, (N,)."""
        cells = cells.clone()
        cells[:, self.batch_column] = batch
        return cells

    def one_hot_batch(self, cells: Tensor) -> Tensor:
        """The batch of cells (N, W) among those of the training data, (N, B); zeros for a new batch."""
        if self.batch_column is None:
            return cells.new_ones(len(cells), 1)
        # A step with nn.functional.one_hot, which looks for the largest value, can't be recorded.
        batches = torch.arange(self.n_batches, device=cells.device)
        return (cells[:, self.batch_column].long()[:, None] == batches).to(cells.dtype)


class Encoder(nn.Module):
    """The q(z | x) of a module of scvi-tools, for packed cells (N, W): a diagonal normal (N, D)."""

    module: Any  # of a class with methods of scvi-tools

    def __init__(self, module: nn.Module, layout: Layout):
        super().__init__()
        self.module, self.layout = module, layout
        self.training = module.training

    def forward(self, cells: Tensor) -> Normal:
        # TOTALVI's inference keeps results of its last cells as an attribute: restore those of the cells in training.
        before = dict(vars(self.module))
        try:
            return posterior(self.module.inference(**_inference_input(self.module, self.layout.unpack(cells))))
        finally:
            vars(self.module).update(before)


def _inference_input(module: Any, tensors: Mapping[str, Tensor]) -> dict:
    """The arguments of ``inference``, from the measured values even if the data also hold q(z | x) (minified data)."""
    whole = {"full_forward_pass": True} if _may_pass_whole(type(module)) else {}
    return module._get_inference_input(tensors, **whole)


@functools.cache
def _may_pass_whole(cls: Any) -> bool:
    return "full_forward_pass" in inspect.signature(cls._get_inference_input).parameters


def posterior(outputs: Mapping) -> Normal:
    """q(z | x), a diagonal normal (N, D), from the outputs of ``inference``.

    Raises:
        TypeError: the outputs do not have it.
    """
    qz = outputs.get("qz")
    if isinstance(qz, Normal):
        return qz
    if "qz_m" in outputs:  # MULTIVI
        return Normal(outputs["qz_m"], outputs["qz_v"].sqrt())
    raise TypeError(f"inference returns {sorted(outputs)}, expected a normal 'qz', or 'qz_m' and 'qz_v'")


class PseudoCells(InBatches):
    """K pseudo-cells, packed: the measured values are trained, the held ones are those of the cells they start at.

    Counts are max(u, 0), with the gradient passed straight through: a zero stays zero in the pass, and stays trainable.
    An encoder that sees the batch gets each pseudo-cell either in all batches of the training data, to average over
    them ("averaged", see :class:`~pyro_vmm.priors.pseudo_inputs.InBatches`), or in the batch of the cell that it
    started at ("held").

    :meth:`fix` freezes q(mu), so that it no longer depends on the encoder. In older files its covariance is diagonal.

    Arguments:
        layout: the columns of a cell.
        initial: cells to start from, (K, W).
        batch: one of ``PSEUDO_BATCHES``.
        latent_dim: D.

    Attributes:
        frozen: whether q(mu) is frozen.
    """

    held: Tensor
    fixed: Tensor
    fixed_loc: Tensor
    fixed_scale: Tensor
    fixed_below: Tensor
    per_component = ("held", "fixed", "fixed_loc", "fixed_scale", "fixed_below")

    def __init__(self, layout: Layout, initial: Tensor, batch: str, latent_dim: int):
        super().__init__(initial[:, : layout.n_measured])
        self.layout, self.batch, self.latent_dim = layout, batch, latent_dim
        self.register_buffer("held", initial[:, layout.n_measured :].clone())
        self.frozen = False
        self.register_buffer("fixed", torch.zeros(len(initial), dtype=torch.bool))  # what files say of it
        self.register_buffer("fixed_loc", initial.new_zeros(len(initial), latent_dim))
        # The Cholesky factor in two parts: its diagonal, which files have had from the start, and what is below.
        self.register_buffer("fixed_scale", initial.new_zeros(len(initial), latent_dim))
        self.register_buffer("fixed_below", initial.new_zeros(len(initial), latent_dim, latent_dim))

    def like(self, rows: Tensor) -> "PseudoCells":
        return type(self)(self.layout, rows, self.batch, self.latent_dim)

    @property
    def n_batches(self) -> int:
        """B, the number of batches that each pseudo-cell belongs to."""
        return self.layout.n_batches if self.layout.sees_batch and self.batch == "averaged" else 1

    def forward(self) -> Tensor:
        """(K, W); or (B K, W), or fewer, batch by batch."""
        values = self.u + (self.u.clamp(min=0) - self.u).detach() if self.layout.counts else self.u
        cells = torch.cat([values, self.held], -1)
        if self.n_batches == 1:
            return cells
        batches = self.drawn(self.n_batches)
        return self.layout.in_batch(cells.repeat(len(batches), 1), batches.flatten().to(cells.dtype))

    def encode(self, encoder: nn.Module) -> Centres:
        if self.frozen:
            return Centres(self.fixed_loc, self.fixed_tril)
        return averaged(super().encode(encoder), self.n_batches, len(self))

    @property
    def fixed_tril(self) -> Tensor:
        """The Cholesky factors (K, D, D) of the covariances of the frozen q(mu)."""
        return torch.diag_embed(self.fixed_scale) + self.fixed_below

    @torch.no_grad()
    def fix(self, encoder: nn.Module) -> None:
        """Freeze q(mu) as this encoder makes it."""
        loc, tril = self.encode(encoder)
        assert tril is not None, "an encoder's q(mu) has covariances"
        self.fixed_loc.copy_(loc)
        self.fixed_scale.copy_(tril.diagonal(dim1=-2, dim2=-1))
        self.fixed_below.copy_(tril.tril(-1))
        self.fixed.fill_(True)
        self.frozen = True

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if prefix + "fixed_scale" in state_dict:  # a file from before has no "fixed_below"
            state_dict.setdefault(prefix + "fixed_below", torch.zeros_like(self.fixed_below))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.frozen = bool(self.fixed.any())


class Cells:
    """Some cells of a model's data as packed rows: ``cells[positions]`` is a tensor (M, W) on the model's device.

    Arguments:
        model: a model of scvi-tools with data.
        indices: the positions of the cells, (N,).
        layout: the columns of a cell.
    """

    def __init__(self, model, indices: np.ndarray, layout: Layout):
        self.model, self.indices, self.layout = model, np.asarray(indices), layout

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, positions: Tensor) -> Tensor:
        indices = self.indices[positions.cpu().numpy()]
        # Some at a time: with 100,000 peaks, dense tensors of all and their packed copy would take a gigabyte.
        loader = self.model._make_data_loader(adata=self.model.adata, indices=indices, batch_size=READ_AT_ONCE)
        rows, start = torch.empty(len(indices), self.layout.width), 0
        for tensors in loader:
            packed = self.layout.pack(tensors)
            rows[start : start + len(packed)] = packed
            start += len(packed)
        return rows.to(self.model.device)


def all_counts(model, keys: Iterable[str]) -> bool:
    """Whether no cell of a model's data has a negative value in these fields of its registry."""
    for key in keys:
        values = model.adata_manager.get_from_registry(key)
        for start in range(0, values.shape[0], ROWS_AT_ONCE):
            rows = values[start : start + ROWS_AT_ONCE]
            if (np.asarray(rows.data if sparse.issparse(rows) else rows) < 0).any():
                return False
    return True


def read(model, indices: np.ndarray) -> dict[str, Tensor]:
    """Cells of a model's data at positions (M,), as scvi-tools' own data loader gives them."""
    return next(iter(model._make_data_loader(adata=model.adata, indices=indices, batch_size=len(indices))))
