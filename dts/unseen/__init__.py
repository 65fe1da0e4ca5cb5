"""Tasks never seen, and inputs of no known task: mixtures from the meaning of class names, routers."""

from .baselines import NameRouter, ProbeRouter
from .choice import Choice, choose
from .encoders import Encoder, open_encoder
from .heads import NoHead
from .loaded import add_task
from .mix import NotExact, mix
from .router import EnergyRouter, calibrated_router, scrambled
from .weights import OpaqueNames, TaskWeights, task_embeddings, task_weights

__all__ = [
    "Choice",
    "Encoder",
    "EnergyRouter",
    "NameRouter",
    "NoHead",
    "NotExact",
    "OpaqueNames",
    "ProbeRouter",
    "TaskWeights",
    "add_task",
    "calibrated_router",
    "choose",
    "mix",
    "open_encoder",
    "scrambled",
    "task_embeddings",
    "task_weights",
]
