"""Families of timm and diffusers, and modules of PyTorch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.models import absent, batches
from tests.models.row import Batch, Maker, Row

ROWS: list[Row] = []


# ---- timm ----------------------------------------------------------------------------------------------------------


def pixels(model: Any, rows: int) -> Batch:
    return {"x": batches.noise(rows, 3, 32, 32)}


def timm(name: str, **given: Any) -> None:
    def make() -> nn.Module:
        with absent.torchvision():
            import timm as library
        return library.create_model(name, pretrained=False, num_classes=3, **given)

    ROWS.append(Row(name, "timm", "create_model", make, pixels, library="timm"))


SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
for family in (
    "vit_small_patch16_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "deit3_small_patch16_224",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_clip_224",
):
    timm(family, **SMALL)
timm("swin_tiny_patch4_window7_224", img_size=32, window_size=2, embed_dim=32, depths=(1, 1), num_heads=(2, 4))
timm("convnext_tiny", dims=(16, 32, 32, 32), depths=(1, 1, 1, 1))
timm("cait_xxs24_224", **SMALL)
timm("resnet18", layers=(1, 1, 1, 1), channels=(16, 32, 32, 32))
timm("resnext50_32x4d", layers=(1, 1, 1, 1), channels=(16, 32, 32, 32), base_width=32)

# ---- diffusers -----------------------------------------------------------------------------------------------------


def diffusers(kind: str, inputs: Maker, what: str = "", **given: Any) -> None:
    def make() -> nn.Module:
        import diffusers as library

        return getattr(library, kind)(**given)

    ROWS.append(Row(what or kind, "diffusers", kind, make, inputs, library="diffusers"))


def noisy(model: Any, rows: int) -> Batch:
    return {"sample": batches.noise(rows, model.config.in_channels, 8, 8), "timestep": torch.arange(rows) * 10 + 1}


def guided(model: Any, rows: int) -> Batch:
    return noisy(model, rows) | {"encoder_hidden_states": batches.noise(rows, 4, 32)}


BLOCKS = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 8}
diffusers(
    "UNet2DModel",
    noisy,
    **BLOCKS,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)
diffusers(
    "UNet2DConditionModel",
    guided,
    **BLOCKS,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=32,
    attention_head_dim=8,
)
diffusers(
    "AutoencoderKL",
    lambda model, rows: {"sample": batches.noise(rows, 3, 16, 16)},
    block_out_channels=(16, 32),
    down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
    up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    norm_num_groups=8,
    sample_size=16,
)
diffusers(
    "DiTTransformer2DModel",
    lambda model, rows: {
        "hidden_states": batches.noise(rows, 4, 8, 8),
        "timestep": torch.arange(rows) * 10 + 1,
        "class_labels": torch.arange(rows) % 3,
    },
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=4,
    num_layers=2,
    sample_size=8,
    num_embeds_ada_norm=10,
    norm_num_groups=2,
)
diffusers(
    "SD3Transformer2DModel",
    lambda model, rows: {
        "hidden_states": batches.noise(rows, 4, 8, 8),
        "encoder_hidden_states": batches.noise(rows, 5, 32),
        "pooled_projections": batches.noise(rows, 32),
        "timestep": torch.arange(rows) * 10 + 1,
    },
    sample_size=8,
    patch_size=2,
    in_channels=4,
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=4,
    joint_attention_dim=32,
    caption_projection_dim=32,
    pooled_projection_dim=32,
    out_channels=4,
)
diffusers(
    "FluxTransformer2DModel",
    lambda model, rows: {
        "hidden_states": batches.noise(rows, 16, 8),
        "encoder_hidden_states": batches.noise(rows, 5, 32),
        "pooled_projections": batches.noise(rows, 32),
        "timestep": torch.linspace(0.1, 1, rows),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(5, 3),
        "guidance": torch.ones(rows),
    },
    patch_size=1,
    in_channels=8,
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=32,
    pooled_projection_dim=32,
    axes_dims_rope=(4, 4, 8),
    guidance_embeds=True,
)

# ---- PyTorch -------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Texts of different lengths, packed, through a recurrent network."""

    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.words = nn.Embedding(40, 24)
        self.rnn = kind(24, 32, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 3)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.words(ids), lengths, batch_first=True, enforce_sorted=False)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(y.sum(1))


class Sequence(nn.Module):
    """PyTorch's own encoder and decoder, called with keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 32)
        self.body = nn.Transformer(32, 4, 2, 2, 48, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 40)

    def forward(self, ids: Tensor, so_far: Tensor, padding: Tensor) -> Tensor:
        masks = {"src_key_padding_mask": padding, "memory_key_padding_mask": padding}
        y = self.body(src=self.words(input=ids), tgt=self.words(so_far), **masks)
        return self.head(input=y)


def lengths(model: Any, rows: int) -> Batch:
    return {"ids": _ids(rows), "lengths": torch.tensor([8, 5, 3, 8])[:rows]}


def both(model: Any, rows: int) -> Batch:
    padding = torch.zeros(rows, 8, dtype=torch.bool)
    padding[0, -2:] = True
    return {"ids": _ids(rows), "so_far": _ids(rows)[:, :5].int(), "padding": padding}


def _ids(rows: int) -> Tensor:
    return torch.randint(0, 40, (rows, 8), generator=torch.Generator().manual_seed(rows))


def torch_row(name: str, make: Callable[[], nn.Module], inputs: Maker) -> None:
    ROWS.append(Row(name, "PyTorch alone", type(make()).__name__, make, inputs, library="torch"))


torch_row("nn.LSTM, packed", lambda: Recurrent(nn.LSTM), lengths)
torch_row("nn.GRU, packed", lambda: Recurrent(nn.GRU), lengths)
torch_row("nn.Transformer", Sequence, both)
