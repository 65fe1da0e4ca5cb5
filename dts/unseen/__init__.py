"""Tasks never seen, and inputs of no known task: mixtures from the meaning of class names."""

from .encoders import Encoder, open_encoder
from .weights import OpaqueNames, TaskWeights, task_embeddings, task_weights

__all__ = ["Encoder", "OpaqueNames", "TaskWeights", "open_encoder", "task_embeddings", "task_weights"]
