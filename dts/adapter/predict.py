"""What a dry run says of the errors, from the spectra alone: see `dts.codec.spectrum` for formulas and assumptions."""

from dataclasses import dataclass

from dts.adapter.entries import Entry
from dts.adapter.matrix import NO_SPECTRUM, Matrix
from dts.adapter.plan import Compressible
from dts.codec.method import Method

Errors = tuple[float, float, float]  # (predicted, lower, upper)


@dataclass(frozen=True)
class Predicted:
    """Squared relative error ||delta - delta_hat||^2 / ||delta||^2: the expected one, and the lower and upper bound.

    The lower bound holds for every matrix, the upper one where elements of singular vectors are close to normal.
    """

    squared_error: float
    lower: float
    upper: float


@dataclass(frozen=True)
class TensorPrediction(Predicted):
    """The same of one tensor; ranks: one a matrix (several for a stack of experts), 0 where it stays the base's;
    norm: ||delta||_F."""

    name: str
    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    norm: float


@dataclass(frozen=True)
class Prediction(Predicted):
    """Of a whole adapter; biases, norms and heads err by what is known of them.  tensors: the compressed ones."""

    tensors: tuple[TensorPrediction, ...]


def prediction(plans: dict[str, Entry | Compressible], ranks: list[int], method: Method) -> Prediction:
    """plans: of all tensors that differ; ranks: of all their matrices, in order.  The plans must know spectra."""
    left, tensors = iter(ranks), list[TensorPrediction]()
    for name, plan in plans.items():
        if isinstance(plan, Compressible):
            own = tuple(next(left) for _ in plan.matrices)
            each = [(m.norm**2, _matrix(m, rank, method)) for m, rank in zip(plan.matrices, own)]
            tensors.append(TensorPrediction(*_mean(each, plan.norm**2), name, plan.shape, own, plan.norm))
    whole = sum(plan.norm**2 for plan in plans.values())
    errors = [(t.norm**2, (t.squared_error, t.lower, t.upper)) for t in tensors]
    for plan in plans.values():
        if isinstance(plan, Entry):
            error = plan.squared_error or 0.0
            errors.append((plan.norm**2, (error, error, error)))
    return Prediction(*_mean(errors, whole), tuple(tensors))


def _matrix(matrix: Matrix, rank: int, method: Method) -> Errors:
    if not rank or not matrix.norm:
        return 1.0, 1.0, 1.0
    method, kept = matrix.method(method), matrix.kept(rank, method)
    if kept.singular is None:
        raise ValueError(NO_SPECTRUM)
    error = method.predicted_error(kept.singular, [rank], kept.shape)
    lower, upper = method.error_bounds(kept.singular, [rank], kept.shape)
    share = kept.norm**2 / matrix.norm**2  # of rows that are left at the base everything is lost
    return 1 - share * (1 - error.item()), 1 - share * (1 - lower.item()), 1 - share * (1 - upper.item())


def _mean(errors: list[tuple[float, Errors]], whole: float) -> Errors:
    """Means weighted by energy, where the energies need not sum to ``whole``."""
    expected, lower, upper = (
        sum(energy * each[i] for energy, each in errors) / whole if whole else 0.0 for i in range(3)
    )
    return expected, lower, upper
