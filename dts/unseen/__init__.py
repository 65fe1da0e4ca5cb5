"""Tasks never seen, and inputs of no known task: mixtures from the meaning of class names, routers."""

from .baselines import NameRouter, ProbeRouter
from .choice import Choice, choose
from .encoders import Encoder, open_encoder
from .heads import NoHead
from .likelihood import LikelihoodRouter, task_router
from .loaded import add_task
from .mix import NotExact, mix
from .router import EnergyRouter, calibrated_router, scrambled
from .statistics import input_statistics
from .weights import OpaqueNames, TaskWeights, task_embeddings, task_weights

__all__ = [
    "Choice",
    "Encoder",
    "EnergyRouter",
    "LikelihoodRouter",
    "NameRouter",
    "NoHead",
    "NotExact",
    "OpaqueNames",
    "ProbeRouter",
    "TaskWeights",
    "add_task",
    "calibrated_router",
    "choose",
    "input_statistics",
    "mix",
    "open_encoder",
    "scrambled",
    "task_embeddings",
    "task_router",
    "task_weights",
]
