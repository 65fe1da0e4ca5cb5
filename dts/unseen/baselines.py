"""Two other ways to route: by the meaning of class names, and by a probe that is trained."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .choice import Choice, choose
from .encoders import Source, open_encoder
from .weights import task_embeddings


class NameRouter:
    """The task with the class name nearest to the text. Needs text and an encoder; nothing is trained."""

    def __init__(self, adapters: Mapping[str, Any], encoder: Source = "default", sharpness: float = 20.0):
        self.encode, self.sharpness = open_encoder(encoder), sharpness
        self.classes = task_embeddings(adapters, self.encode)
        self.names = list(self.classes)

    def scores(self, texts: list[str]) -> Tensor:
        """float32 [texts, tasks]: the largest cosine between the text and the task's class names, times sharpness."""
        vectors = torch.nn.functional.normalize(self.encode(list(texts)), dim=1)
        return self.sharpness * torch.stack([(vectors @ c.T).amax(1) for c in self.classes.values()], dim=1)

    def route(self, texts: list[str], floor: float = 0.0) -> Choice:
        return choose(self.scores(texts), self.names, floor)


class ProbeRouter:
    """Logistic regression on features of the base; needs labelled samples of every task and scikit-learn to fit."""

    def __init__(self, names: list[str], weight: Tensor, bias: Tensor):
        self.names, self.weight, self.bias = names, weight, bias  # [tasks, d], [tasks]

    @classmethod
    def fit(cls, features: Mapping[str, Tensor], strength: float = 1.0) -> "ProbeRouter":
        """features: {task: float [samples, d]}; strength: scikit-learn's C, on features scaled to unit variance."""
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise ImportError("a probe is fitted by scikit-learn: pip install scikit-learn") from error
        if len(features) < 2:
            raise ValueError(f"a probe tells at least two tasks apart; there is {list(features)}")
        x = torch.cat(list(features.values())).double()
        mean, spread = x.mean(0), x.std(0).clamp(min=1e-12)
        labels = [i for i, rows in enumerate(features.values()) for _ in range(len(rows))]
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(((x - mean) / spread).numpy(), labels)
        weight, bias = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
        if len(features) == 2:  # scikit-learn gives the second class's odds only
            weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
        weight = weight / spread
        return cls(list(features), weight.float(), (bias - weight @ mean).float())

    def scores(self, features: Tensor) -> Tensor:
        """float32 [rows, tasks] of features [rows, d]."""
        return features.float() @ self.weight.T + self.bias

    def route(self, features: Tensor, floor: float = 0.0) -> Choice:
        return choose(self.scores(features), self.names, floor)
