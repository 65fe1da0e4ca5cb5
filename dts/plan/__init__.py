"""What a model and its tasks will take of a device's memory, said before anything is loaded."""

from dts.plan.plan import Plan, Row, TooSmall, plan
from dts.plan.within import within

__all__ = ["Plan", "Row", "TooSmall", "plan", "within"]
