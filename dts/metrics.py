"""How small an adapter is and how much of the fine-tuned model it keeps (`docs/glossary.md`)."""

import torch
from torch import Tensor


def amr(nbytes: int, parameters: int) -> float:
    """Additional memory rate: bytes of one adapter / bytes of the base in fp32 (4 a parameter)."""
    return nbytes / (4 * parameters)


def adr(finetuned_accuracy: float, accuracy: float) -> float:
    """Accuracy drop rate: (accuracy fine-tuned - accuracy) / accuracy fine-tuned; negative for a gain."""
    return (finetuned_accuracy - accuracy) / finetuned_accuracy


def agreement(logits: Tensor, reference: Tensor) -> float:
    """Share of rows whose largest logit is the reference's: logits, reference [..., classes]."""
    return (logits.argmax(-1) == reference.argmax(-1)).double().mean().item()


def kl(logits: Tensor, reference: Tensor) -> float:
    """Mean over rows of KL(softmax(reference) || softmax(logits)), in nats: logits, reference [..., classes]."""
    reference, logits = (torch.log_softmax(x.double(), -1) for x in (reference, logits))
    return (reference.exp() * (reference - logits)).sum(-1).mean().item()
