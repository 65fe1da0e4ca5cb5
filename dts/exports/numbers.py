"""Are a tensor's numbers still the same ones in the dtype that the base has?"""

import torch
from torch import Tensor


def misfit(values: Tensor, dtype: torch.dtype) -> str:
    """Why values cannot take a dtype, or nothing: another kind of numbers, or some that it has not.

    That a float is rounded to the nearest of a narrower dtype is no reason; that it becomes infinite is one.
    """
    names = [str(one).removeprefix("torch.") for one in (values.dtype, dtype)]
    if values.is_complex() or values.is_floating_point() != dtype.is_floating_point:
        return f"its values are {names[0]}, the base's {names[1]}"
    made = values.to(dtype)
    if dtype.is_floating_point:
        lost = values.double().isfinite() & ~made.double().isfinite()
    else:
        lost = made.to(torch.int64) != values.to(torch.int64)
    if count := int(lost.sum()):
        return f"{count} of its values are beyond {names[1]}, which the base has"
    return ""
