"""One layer by hand: a difference to 2-bit factors, a layer that runs them, and the product underneath."""

import torch

import dts
from dts_kernels import Bank, Routing, linear

torch.manual_seed(0)
OUT, IN = 256, 128
base = torch.nn.Linear(IN, OUT)


def difference(strength: float) -> torch.Tensor:
    """A matrix [256, 128] as fine-tuning leaves them: a few strong directions in a sea of weak ones."""
    u, _, vh = torch.linalg.svd(torch.randn(OUT, IN), full_matrices=False)
    return strength * (u * (1 + torch.arange(IN)) ** -1.0) @ vh


deltas = {"a": difference(0.5), "b": difference(0.4)}

# 1. the codec: rank is bytes, and bytes are error
for fraction in (0.1, 0.3, 1.0):
    factors = dts.compress_tensor(deltas["a"], rank_fraction=fraction)
    error = (factors.reconstruct() - deltas["a"]).square().sum() / deltas["a"].square().sum()
    print(
        f"rank {factors.rank:3}: {factors.nbytes:6,} bytes of {deltas['a'].nbytes:,}, squared error {error:.3f} "
        f"(recorded {factors.squared_error:.3f})"
    )

# 2. the layer: shares the base's parameters, holds packed factors beside them
layer = dts.DTSLinear.from_linear(base)
factors = {name: dts.compress_tensor(delta, rank_fraction=0.3) for name, delta in deltas.items()}
for name, one in factors.items():
    layer.load_task(name, one)
x = torch.randn(3, IN)
with torch.no_grad():
    for task, delta in (("a", factors["a"].reconstruct()), (None, torch.zeros(OUT, IN))):
        layer.set_task(task)
        dense = torch.nn.functional.linear(x, base.weight + delta, base.bias)
        print(f"task {task}: differs from the dense product by {(layer(x) - dense).abs().max():.0e} at most")

    # 3. the product: all tasks of a layer are a bank; the routing says which of them each row uses, and how much
    bank = Bank(IN, OUT)
    for slot, one in enumerate(factors.values()):
        bank.add(slot, one.packed)
    routing = Routing.of([0, None, {0: 0.7, 1: 0.3}])  # a slot, the base, a mixture
    y = linear(x, base.weight, base.bias, bank, routing)
    print(
        f"three rows, three routings, one call: {list(y.shape)}; row 1 is the base's: {torch.equal(y[1], base(x)[1])}"
    )
