"""CUDA graphs of a `DTSModel`'s calls, which follow the tasks that are set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dts.nn.graphs import Captured, Record, cuda_graph, reserve
from dts.nn.wrapper.calls import Calls


class Graphs(Calls):
    """Captures calls, and makes room for tasks to come."""

    def reserve(self, tasks: int) -> None:
        """Let a CUDA graph that is captured from now on follow so many loaded tasks, of ranks up to the largest that
        each layer has now (rounded up to 128).

        At first there is room for 8.  Only tables: a task takes its memory when it is loaded.
        """
        if not isinstance(tasks, int) or isinstance(tasks, bool) or tasks < 1:
            raise ValueError(f"reserve takes a number of tasks, 1 or more, not {tasks!r}")
        with self._state.alone():
            reserve(self._layers.values(), tasks)

    def capture(self, record: Record | None = None, /, *, share_inputs: bool = False, **inputs: Any) -> Captured:
        """A call with these inputs in a CUDA graph, of the tasks that are set now for as many rows as it has:

            model.set_tasks(names)
            step = model.capture(input_ids=ids, past_key_values=cache)
            model.set_tasks(others)
            logits = step(input_ids=others_ids, past_key_values=cache).logits

        Inputs are by name.  Tensors are copied in each call, all else (a static cache) has to be the same object then.
        It is called some times first, which a cache counts: ``cache.reset()`` afterwards.  What is returned is
        overwritten by the next call.  Tasks may be loaded, deleted and set meanwhile; those that need more than
        `reserve` made room for, or change what no task changed before, raise RuntimeError when they are asked for.

        record: makes the graph, for other devices than CUDA's.
        share_inputs: layers that follow one another with the same input (q, k, v) take one launch for what they make of
        it, not one each; not measured yet.  It is captured three times then, and both ways are replayed, with tasks
        that change these layers, on these inputs and others in the place of those of floating point.  Layers whose bits
        differ, or show nothing (a row of zeros), keep a launch each, with a UserWarning; so do all under
        torch.inference_mode(), where nothing counts writes.  Not for models with a kernel past PyTorch's operators that
        writes into a layer's input depending on its numbers, which nothing sees.
        Raises ValueError for inputs without a tensor, RuntimeError where rows of several tasks cannot be captured.
        """
        device = self._state.device
        if not any(isinstance(value, Tensor) for value in inputs.values()):
            raise ValueError("capture takes a call's inputs by name, tensors among them: capture(input_ids=...)")
        if record is not None:
            return Captured(self, inputs, record, share_inputs)
        if device.type != "cuda":
            raise ValueError(f"CUDA graphs are of models on a CUDA device, and this one is on {device}")
        with torch.cuda.device(device):
            return Captured(self, inputs, cuda_graph, share_inputs)
