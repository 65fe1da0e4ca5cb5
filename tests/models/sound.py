"""Families that hear and speak."""

from __future__ import annotations

from typing import Any

from transformers.models.auto import modeling_auto as auto

from tests.models import batches
from tests.models.families import families
from tests.models.row import Row

ROWS: list[Row] = []
CLASSES = {"num_labels": 3}
WAVE = {
    "conv_dim": [32, 32],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def add(*args: Any, **given: Any) -> None:
    ROWS.extend(families(*args, **given))


section, kinds = "Speech and sound", auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES
add(section, "wav2vec2 hubert wavlm sew unispeech unispeech-sat", kinds, batches.wave, **CLASSES, **WAVE)
add(section, "data2vec-audio sew-d wav2vec2-conformer", kinds, batches.wave, **CLASSES, **WAVE)
add(section, "wav2vec2-bert", kinds, batches.spectrum, **CLASSES, feature_projection_input_dim=16)
add(section, "audio-spectrogram-transformer", kinds, batches.spectrum, **CLASSES, num_mel_bins=16, max_length=24)
SPECTRUM = {"num_mel_bins": 16, "max_source_positions": 12}
add(section, "whisper", kinds, batches.spectrum, **CLASSES, **SPECTRUM, what="classifier")
kinds = auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
add(section, "whisper", kinds, batches.speech, batches.spectrum, **SPECTRUM)
add(section, "speech_to_text", kinds, batches.speech, batches.spectrum, input_feat_per_channel=16, conv_channels=32)
add(
    section,
    "moonshine",
    kinds,
    batches.spoken,
    batches.wave,
    decoder_num_key_value_heads=4,
    encoder_num_key_value_heads=4,
)
add(section, "parakeet_ctc", auto.MODEL_FOR_CTC_MAPPING_NAMES, batches.spectrum, encoder_config={"num_mel_bins": 16})
