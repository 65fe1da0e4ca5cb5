"""An adapter as a PEFT LoRA: ``adapter_config.json`` and ``adapter_model.safetensors``.

Components are low rank as they are, so the LoRA computes what the adapter does: B A is the difference in float32, with
lora_alpha = r everywhere, a scaling of 1.  `dts.exports.places` says what becomes of everything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dts import __version__, sums
from dts.adapter import Adapter
from dts.adapter.card import markdown
from dts.checkpoint import write_safetensors
from dts.checkpoint.safetensors_file import Layout
from dts.exports import products
from dts.exports.fitted import Fitted, Source, opened
from dts.exports.places import Places, pattern_of, places, target_modules
from dts.exports.products import Product
from dts.exports.report import Export, Exported, NotExact
from dts.files import Watch, building, check_place, expanded

CONFIG, MODEL, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TIED = (
    "the model shares this weight among {}: each has the difference as a LoRA, so do not merge them (merging adds both)"
)
BIASES = (
    "biases replace the base's while the LoRA is loaded (PEFT's bias='lora_only', as its lora_bias has no embeddings "
    "and no layers without a bias): one such LoRA at a time"
)

UNSEEN = (
    "whether {} reads a layer's weight is not known, as its source is not at hand: PEFT would give it the base's, so "
    "compare the LoRA's outputs with the fine-tune's"
)


def export_lora(
    adapter: Adapter | str | Path,
    base,
    out: str | Path,
    rank: int | None = None,
    dtype: str = "float32",
    model: nn.Module | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Export:
    """Writes a folder that PEFT's ``PeftModel.from_pretrained(model, out)`` loads over the base.

    adapter: or its folder;  base: anything `open_checkpoint` takes
    rank: the largest rank of any layer; layers above it are cut to their best approximation of it, by singular values
    dtype: of the factors, "float32", which is exact, or "bfloat16" or "float16", with what the rounding adds as error
    model: of the class to load the LoRA into; by default the one that the fine-tune's config names
    overwrite: replace a PEFT adapter at ``out``;  progress(done, total, name) in modules
    Returns what is exact, and the squared relative error of what is not; one layer in memory at a time.
    Raises NotExact for an adapter with samples (a sketch) unless a rank is given, Mismatch for another base,
    FileExistsError, ValueError.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {', '.join(DTYPES)}, not {dtype!r}")
    (fit, watch), out = opened(adapter, base, rank, model), expanded(out)
    writer = Writer(fit, places(fit), rank, DTYPES[dtype])
    writer.check_exact()
    return write_folder(writer, watch, out, partial(_card, fit), overwrite, progress)


def write_folder(
    writer: Writer,
    watch: Watch,
    out: Path,
    card: Callable[[Export], str],
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Export:
    """A PEFT adapter, all of it or nothing.  watch: on what it is made of;  card: what was made -> its README.md."""
    with building(out, lambda: check_place(out, overwrite, "a PEFT adapter", is_peft)) as place:
        folder = place.fresh()
        writer.write(folder / MODEL, progress)
        (folder / CONFIG).write_text(json.dumps(writer.config(), indent=2) + "\n", "utf-8")
        result = writer.report(out)
        (folder / "README.md").write_text(card(result), "utf-8")
        nbytes = sum(file.stat().st_size for file in folder.iterdir())
        watch.check()
        place.finish()
    return Export(out, nbytes, result.parameters, result.notes)


def is_peft(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


@dataclass
class Writer:
    """One export.  done: what became of every changed parameter, in the order written."""

    fit: Fitted
    places: Places
    cap: int | None
    dtype: torch.dtype
    done: dict[str, Exported] = field(default_factory=dict)
    last: tuple[str, Product] | None = None  # of the module whose factors were made last: A is written, then B

    # -- what is there

    def sources(self, module: str, leaf: str = "weight") -> list[Source]:
        """The changed parts of a parameter."""
        return [one for one in self.fit.sources.get(f"{module}.{leaf}", ()) if one.entry is not None]

    def sampled(self) -> list[str]:
        """The modules with samples, of which no LoRA is exact."""
        return [module for module in self.places.lora if not all(map(_low_rank, self.sources(module)))]

    def check_exact(self) -> None:
        """Raises NotExact where samples would be lost."""
        sampled = self.sampled()
        if sampled and self.cap is None:
            raise NotExact(
                f"the adapter {self.fit.adapter.name!r} has samples in {len(sampled)} layers "
                f"({', '.join(sampled[:3])}), which are no low rank, so no LoRA is exact.  Give a rank (--rank 64): "
                "each layer becomes the best LoRA of that rank, with the error stated; or write the full model with "
                "dts apply; or compress with --method residual, which has components alone"
            )

    def shape(self, module: str) -> tuple[int, int]:
        """(m, n) of the weight as a matrix."""
        shape = self.fit.sites[f"{module}.weight"].shape
        return shape[0], torch.Size(shape[1:]).numel()

    def rank(self, module: str) -> int:
        """Of the LoRA: PEFT has none of rank 0, so a layer of which only the bias changed has a zero one of rank 1."""
        own, (m, n) = self.sources(module), self.shape(module)
        if all(map(_low_rank, own)):
            whole = sum(products.rank_of(one.entry) for one in own if one.entry)
            return max(1, whole if self.cap is None else min(whole, self.cap))
        assert self.cap is not None  # check_exact
        return min(self.cap, m, n)

    @property
    def lora_bias(self) -> bool:
        """Can biases be differences beside the factors?  PEFT has none for embeddings."""
        sites, lora = self.fit.sites, self.places.lora
        return bool(self.places.biases) and all(
            kind != "embedding" and f"{module}.bias" in sites for module, kind in lora.items()
        )

    # -- factors

    def product(self, module: str) -> Product:
        """B A of a module's weight as a matrix [m, n]."""
        if self.last is None or self.last[0] != module:
            self.last = module, self._product(module).to(self.dtype)
        return self.last[1]

    def _product(self, module: str) -> Product:
        own, (m, n) = self.sources(module), self.shape(module)
        starts = [m // one.target.parts * one.target.part for one in own]
        if not own:
            return Product(torch.zeros(m, 1), torch.zeros(1, n), 0.0)
        if all(map(_low_rank, own)):
            left, right = products.stacked([products.exactly(one.entry) for one in own if one.entry], starts, m)
            if not left.shape[1]:
                return Product(torch.zeros(m, 1), torch.zeros(1, n), 0.0)
            return products.truncated(left, right, self.rank(module))
        delta = torch.zeros(m, n)
        for one, start in zip(own, starts):
            assert one.entry is not None  # `sources` gives changed ones
            part = products.dense(one.entry)
            delta[start : start + part.shape[0]] = part
        return products.of_dense(delta, self.rank(module))

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """(A, B) as PEFT's layer of that kind has them, from left [m, k] and right [k, n]."""
        product, kind = self.product(module), self.places.lora[module]
        if kind in ("conv1d", "embedding"):  # whose weight is (B A) transposed
            return product.left.T.contiguous(), product.right.T.contiguous()
        if kind == "conv":
            kernel = self.fit.sites[f"{module}.weight"].shape[1:]
            ones = [1] * (len(kernel) - 1)
            return product.right.reshape(-1, *kernel), product.left.reshape(*product.left.shape, *ones)
        return product.right, product.left

    def factor(self, module: str, which: int) -> Tensor:
        """A (0) or B (1)."""
        return self.factors(module)[which]

    # -- the file

    def layout(self) -> tuple[Layout, dict[str, Callable[[], Tensor]]]:
        """Names in the file -> dtype and shape, and what makes each tensor."""
        layout: Layout = {}
        make: dict[str, Callable[[], Tensor]] = {}

        def add(name: str, dtype: torch.dtype, shape, load: Callable[[], Tensor]) -> None:
            layout[PREFIX + name], make[PREFIX + name] = (dtype, tuple(shape)), load

        for module, kind in self.places.lora.items():
            site, (m, n), k = self.fit.sites[f"{module}.weight"], self.shape(module), self.rank(module)
            shapes = {"linear": ((k, n), (m, k)), "conv1d": ((k, m), (n, k)), "embedding": ((k, m), (n, k))}
            ones = [1] * (len(site.shape) - 2)
            a, b = shapes.get(kind, ((k, *site.shape[1:]), (m, k, *ones)))
            names = (
                ("lora_embedding_A", "lora_embedding_B") if kind == "embedding" else ("lora_A.weight", "lora_B.weight")
            )
            add(f"{module}.{names[0]}", self.dtype, a, partial(self.factor, module, 0))
            add(f"{module}.{names[1]}", self.dtype, b, partial(self.factor, module, 1))
        for module in self.places.lora if self.lora_bias else self.places.biases:
            name = f"{module}.bias"
            shape, difference = self.fit.sites[name].shape, self.lora_bias
            dtype = torch.float32 if difference else self.fit.dtype(name)
            where = f"{module}.lora_B.bias" if difference else f"{module}.base_layer.bias"
            add(where, dtype, shape, partial(self.bias, name, difference))
        persistent = set(self.fit.model.state_dict(keep_vars=True))
        for module in self.places.whole:
            for name, site in self.fit.sites.items():
                if name.startswith(f"{module}.") and name in persistent:
                    add(name, self.fit.dtype(name), site.shape, partial(self.fit.value, name))
        return layout, make

    def bias(self, name: str, difference: bool) -> Tensor:
        return self.difference(name) if difference else self.fit.value(name)

    def difference(self, name: str) -> Tensor:
        """Of a parameter, float32, flat runs of rows put together."""
        shape = self.fit.sites[name].shape
        delta = torch.zeros(shape)
        for one in self.fit.sources.get(name, ()):
            if one.entry is not None:
                rows = shape[0] // one.target.parts
                delta[one.target.part * rows : (one.target.part + 1) * rows] = one.entry.delta()
        return delta

    def write(self, path: Path, progress=None) -> None:
        layout, make = self.layout()
        if not self.places.lora:
            raise ValueError(f"the model of {self.fit.adapter.name!r} has no layer that a LoRA could be of")
        total = len(layout)

        def load(name: str) -> Tensor:
            tensor = make[name]()
            self.note()
            if progress is not None:
                progress(len(seen), total, name.removeprefix(PREFIX))
            seen.add(name)
            return tensor

        seen: set[str] = set()
        write_safetensors(path, layout, load, {"format": "pt"})

    def note(self) -> None:
        """What the factors made last hold."""
        if self.last is not None:
            module, product = self.last
            name = f"{module}.weight"
            self.done[name] = Exported(name, "lora", product.left.shape[1], product.energy, product.error)

    def report(self, out: Path) -> Export:
        """Of all that was written; energies of what is exact are those of the adapter's differences."""
        parameters, shared, seen = [], dict[int, list[str]](), set[int]()
        for name, sources in self.fit.changed().items():
            module, tensor = name.rpartition(".")[0], id(self.fit.sites[name].tensor)
            again = tensor in seen
            seen.add(tensor)
            if name in self.done:
                parameters.append(replace(self.done[name], again=again))
                shared.setdefault(tensor, []).append(module)
            elif name in self.places.lost:
                energy = _energy(sources)
                parameters.append(Exported(name, "left out", 0, energy, energy, self.places.lost[name], again))
            else:
                how = "bias" if module in self.places.biases else "whole"
                parameters.append(Exported(name, how, 0, _energy(sources), 0.0, again=again))
        for name, why in self.places.lost.items():
            if name not in self.fit.sources:
                entry = self.fit.adapter.entries[name]
                parameters.append(Exported(name, "left out", 0, entry.norm**2, entry.norm**2, why))
        notes = [TIED.format(", ".join(modules)) for modules in shared.values() if len(modules) > 1]
        if self.places.biases and not self.lora_bias:
            notes.append(BIASES)
        if self.places.unseen:
            notes.append(UNSEEN.format(", ".join(self.places.unseen)))
        grown = [n for n, s in self.fit.changed().items() if any(o.entry and o.entry.added_rows is not None for o in s)]
        if grown:
            rows = self.fit.sites[grown[0]].shape[0]
            notes.append(f"the vocabulary grew: model.resize_token_embeddings({rows}) before the LoRA is loaded")
        return Export(out, 0, tuple(parameters), tuple(notes))

    def config(self) -> dict:
        """``adapter_config.json``."""
        lora, base = self.places.lora, self.fit.adapter.config["base"]
        ranks = {module: self.rank(module) for module in lora}
        largest = max(ranks.values(), default=1)
        others = {pattern_of(module, lora): k for module, k in ranks.items() if k != largest}
        modules = [name for name, _ in self.fit.model.named_modules(remove_duplicate=False)]
        kind = type(self.fit.model)
        return {
            "peft_type": "LORA",
            "task_type": None,
            "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__},
            "base_model_name_or_path": base["name"],
            "revision": base["revision"],
            "inference_mode": True,
            "r": largest,
            "lora_alpha": largest,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": target_modules(lora, modules, self.places.whole),
            "modules_to_save": self.places.whole or None,
            "fan_in_fan_out": "conv1d" in lora.values(),
            "bias": "lora_only" if self.places.biases and not self.lora_bias else "none",
            "lora_bias": self.lora_bias,
            "lora_dropout": 0.0,
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
        }


def _low_rank(source: Source) -> bool:
    return source.entry is None or products.is_low_rank(source.entry)


def _energy(sources: list[Source]) -> float:
    """||delta||^2 of the changed parts; values of their own have no difference."""
    entries = [one.entry for one in sources if one.entry is not None]
    known = [entry for entry in entries if not entry.task_only]
    return sum(entry.norm**2 if entry.kind == "value" else sums.energy(entry.delta()) for entry in known)


def _card(fit: Fitted, result: Export) -> str:
    """README.md of the folder."""
    adapter = fit.adapter
    base, kind = adapter.config["base"]["name"], type(fit.model)
    classes = len((adapter.model_config or {}).get("id2label") or ())
    labels = f", num_labels={classes}" if classes and adapter.brings_own else ""
    lines = [
        f"# {markdown(adapter.name)}",
        "",
        f"Exported by dts {__version__} as a LoRA; squared relative error {result.squared_error:.3g}.",
        *(f"- {note}" for note in result.notes),
        *(f"- left out: {markdown(one.name)}: {one.why}" for one in result.left_out),
        "",
        "```python",
        f"from {kind.__module__.split('.')[0]} import {kind.__name__}",
        "from peft import PeftModel",
        "",
        f"base = {kind.__name__}.from_pretrained({base!r}{labels})",
        'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
        "```",
    ]
    return "\n".join(lines) + "\n"
