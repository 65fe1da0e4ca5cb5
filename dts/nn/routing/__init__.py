"""Which task each row of a batch uses, for every call of a model and every thread."""

from dts.nn.routing.current import Current, backward_here, call_here, tracing
from dts.nn.routing.mixtures import ConstantRouting, Mixture, beside, gammas, groups
from dts.nn.routing.state import RoutingState

__all__ = [
    "Current",
    "ConstantRouting",
    "Mixture",
    "RoutingState",
    "backward_here",
    "beside",
    "call_here",
    "gammas",
    "groups",
    "tracing",
]
