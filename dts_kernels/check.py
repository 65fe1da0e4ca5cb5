"""What an op may be given, looked at inside every op before C or Triton sees a pointer."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .operands import StoredSamples
from .sample_table import PLAIN, SHARED, read

FLOATS = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
IDS = (torch.int64, torch.int32)
_int32, _float32, _strided = torch.int32, torch.float32, torch.strided


def plain(slots: Tensor, weights: Tensor) -> int:
    """Entries of a routing that C can read as it lies (but for pending signs), else 0.

    Looked at in every call and never remembered: ``slots.data = other`` leaves neither a trace nor the sizes.
    """
    shape = slots.shape
    if (
        slots.dtype is _int32
        and weights.dtype is _float32
        and len(shape) == 2
        and weights.shape == shape
        and slots.is_contiguous()
        and weights.is_contiguous()
        and slots.is_cpu
        and weights.is_cpu
        and type(slots) is Tensor
    ):
        return shape[0]
    return 0


def product(
    x: Tensor,
    y: Tensor | None,
    slots: Tensor,
    weights: Tensor,
    adds: Tensor | None,
    in_features: int,
    out_features: int,
) -> bool:
    """Raise ValueError, with all sizes, unless these are operands of x [..., in_features] -> [..., out_features].

    Returns whether all but y lie as C reads them, but for pending signs: on the CPU, routing and adds contiguous.
    """
    shape, entries, dtype = x.shape, plain(slots, weights), x.dtype
    if (
        entries
        and len(shape) > 0
        and shape[-1] == in_features
        and dtype in FLOATS
        and (entries == 1 or in_features and x.numel() // in_features % entries == 0)
        and (y is None or y.dtype is dtype and y.shape == shape[:-1] + (out_features,) and y.device == x.device)
        and (adds is None or adds.dtype is _float32 and adds.dim() == 2 and adds.shape[1] == out_features)
    ):  # nothing else to look at, and no strings made for nobody
        return x.is_cpu and (adds is None or adds.is_cpu and adds.is_contiguous())
    wrong = []
    if x.dim() < 1 or x.shape[-1] != in_features:
        wrong.append(f"x {list(x.shape)} must end in in_features = {in_features}")
    if x.dtype not in FLOATS:
        wrong.append(f"x must be floating point of 16, 32 or 64 bits, not {x.dtype}")
    if x.dim() and y is not None and (y.shape != x.shape[:-1] + (out_features,) or y.dtype != x.dtype):
        wrong.append(
            f"y {list(y.shape)} {y.dtype} must be {[*x.shape[:-1], out_features]} {x.dtype}, as x and the bank say"
        )
    wrong += elsewhere(x, y=y)
    if adds is not None and (adds.dtype != torch.float32 or adds.dim() != 2 or adds.shape[1] != out_features):
        wrong.append(f"adds {list(adds.shape)} {adds.dtype} must be float32 [slots, {out_features}]")
    wrong += _routing(slots, weights, x.shape[:-1].numel() if x.dim() else 1, f"rows of x {list(x.shape)}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return False


def elsewhere(x: Tensor, **others: Tensor | None) -> list[str]:
    """What is wrong with operands that are not on the device of x: kernels get their addresses."""
    return [
        f"{name} is on {other.device}, x on {x.device}"
        for name, other in others.items()
        if other is not None and other.device != x.device
    ]


def ids(of: Tensor, slots: Tensor, weights: Tensor, y: Tensor | None = None, columns: int | None = None) -> bool:
    """The same for ids [...] of rows, and y [..., columns] (None: any).  Returns whether C can read the routing."""
    entries = plain(slots, weights)
    if (
        entries
        and of.dtype in IDS
        and (entries == 1 or of.numel() % entries == 0)
        and (
            y is None
            or y.dtype in FLOATS
            and y.dim()
            and y.shape == (*of.shape, y.shape[-1] if columns is None else columns)
        )
    ):
        return True
    wrong = [] if of.dtype in IDS else [f"ids must be int64 or int32, not {of.dtype}"]
    wrong += _routing(slots, weights, of.numel(), f"ids {list(of.shape)}")
    if y is not None and (y.dtype not in FLOATS or y.shape[:-1] != of.shape or y.dim() != of.dim() + 1):
        wrong.append(f"y {list(y.shape)} {y.dtype} must be floating point {[*of.shape, columns or 'columns']}")
    elif y is not None and columns is not None and y.shape[-1] != columns:
        wrong.append(f"y {list(y.shape)} must be {[*of.shape, columns]}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return False


def launched(*tensors: Tensor) -> bool:
    """Whether a kernel can be given the addresses of all of them, flat as they lie, on one device."""
    device = tensors[0].device
    return all(t.is_contiguous() and not t.is_neg() and t.device == device for t in tensors)


def _routing(slots: Tensor, weights: Tensor, rows: int, what: str) -> list[str]:
    wrong = []
    if slots.dtype != torch.int32 or weights.dtype != torch.float32:
        wrong.append(f"routing needs int32 slots and float32 weights, not {slots.dtype} and {weights.dtype}")
    if slots.dim() != 2 or slots.shape != weights.shape:
        wrong.append(
            f"routing needs slots and weights of one shape [entries, places], "
            f"not {list(slots.shape)} and {list(weights.shape)}"
        )
        return wrong
    entries = slots.shape[0]
    if entries == 0 and rows or entries and rows % entries:
        wrong.append(f"{rows} {what} are no multiple of the routing's {entries} entries")
    return wrong


def gamma(of: Tensor, base: Tensor | None, shape: tuple[int, int], slots: int) -> Tensor:
    """float32 [slots] (missing ones 0) of what was given as a dense matrix's weights; ValueError if base is no matrix
    of ``shape``."""
    wrong = []
    if of.dim() != 1 or not of.is_floating_point():
        wrong.append(f"gamma {list(of.shape)} {of.dtype} must be floating point [slots]")
    if base is not None and (tuple(base.shape) != tuple(shape) or base.dtype not in FLOATS):
        wrong.append(f"base {list(base.shape)} {base.dtype} must be floating point {list(shape)}")
    if min(shape) < 0:
        wrong.append(f"a matrix has no shape {list(shape)}")
    if wrong:
        raise ValueError("; ".join(wrong))
    of = real(of).to(torch.float32).contiguous()
    return of if of.shape[0] >= slots else torch.nn.functional.pad(of, (0, slots - of.shape[0]))


def samples(stored: StoredSamples, arena: bool) -> None:
    """Raise ValueError unless these can be a bank's, shape by shape; arena: whether all codes are in one tensor of
    words, whose table `sample_contents` looks at.  On the CPU the numbers in them too."""
    codes, table, starts, scales = stored
    wrong = []
    if table.dtype != torch.int64 or table.dim() != 2 or table.shape[1] not in (PLAIN, SHARED):
        wrong.append(
            f"the samples' table must be int64 [samples, {PLAIN} or {SHARED}], not {table.dtype} {list(table.shape)}"
        )
    if starts.dtype != torch.int64 or starts.dim() != 1 or not starts.numel():
        wrong.append(f"starts must be int64 [slots + 1], not {starts.dtype} {list(starts.shape)}")
    if scales.dtype != torch.float32 or scales.dim() != 1 or table.dim() and scales.numel() < table.shape[0]:
        wrong.append(f"scales must be float32 [samples], not {scales.dtype} {list(scales.shape)}")
    dtype, dim = (torch.int32, 1) if arena else (torch.uint8, 2)
    if any(c.dtype != dtype or c.dim() != dim or c.layout is not torch.strided for c in codes):
        wrong.append(
            f"codes must be uint8 [m, bytes] each, or all in one int32 [words], "
            f"not {[(str(c.dtype), list(c.shape)) for c in codes]}"
        )
    if not wrong and table.is_cpu and starts.is_cpu and not arena:
        at = starts.tolist()
        if at[0] < 0 or any(b < a for a, b in zip(at, at[1:])) or at[-1] > min(len(codes), table.shape[0]):
            wrong.append(f"starts {at} do not rise from 0 to at most {min(len(codes), table.shape[0])} samples")
        for row in table.tolist():
            try:
                read(row)
            except ValueError as error:
                wrong.append(str(error))
        if table.shape[0] < len(codes):
            wrong.append(f"{len(codes)} tensors of codes for {table.shape[0]} rows of the table")
    if wrong:
        raise ValueError("; ".join(wrong))


def no_forward_mode() -> None:
    """Forward derivatives would be zeros in silence: an op without a formula of its own drops them."""
    if forward_ad._current_level >= 0:
        raise NotImplementedError(
            "products with packed factors have no forward-mode derivatives (jvp, jacfwd): "
            "use reverse mode (grad, vjp, jacrev)"
        )


def real(t: Tensor) -> Tensor:
    """The tensor with its numbers in memory as they are: no pending negation, no zeros that were never written."""
    if t.layout is not _strided:
        raise ValueError(f"a dense tensor is needed, not {t.layout}")
    if t._is_zerotensor():
        return torch.zeros(t.shape, dtype=t.dtype, device=t.device)
    return t.resolve_neg() if t.is_neg() else t


def signed(x: Tensor, weights: Tensor, adds: Tensor | None = None) -> bool:
    """Whether one of them has a pending sign.  (Not for those who trace: it is no tensor.)"""
    return x.is_neg() or weights.is_neg() or adds is not None and adds.is_neg()


def flat(t: Tensor, device: torch.device) -> Tensor:
    """What C and Triton read without strides: contiguous, on the device of x."""
    if t.device != device:
        raise ValueError(f"all tensors of a product must be on one device, not {t.device} and {device}")
    t = real(t)
    return t if t.is_contiguous() else t.contiguous()
