"""Feeding outputs back in: decoders, helpers, attention, beam search, generation, and the losses of sequences."""

from throughtime.decode.attention import (
    AttentionMechanism,
    BahdanauAttention,
    BahdanauMonotonicAttention,
    LuongAttention,
    LuongMonotonicAttention,
    Memory,
)
from throughtime.decode.beam_decoder import (
    BeamSearchDecoder,
    BeamSearchDecoderOutput,
    BeamSearchDecoderState,
    FinalBeamSearchDecoderOutput,
)
from throughtime.decode.decoder import BasicDecoder, BasicDecoderOutput, Decoder
from throughtime.decode.dynamic import dynamic_decode
from throughtime.decode.generate import Generation, StreamedStep, generate, generate_stream
from throughtime.decode.helpers import (
    CustomHelper,
    GreedyEmbeddingHelper,
    Helper,
    InferenceHelper,
    SampleEmbeddingHelper,
    ScheduledEmbeddingTrainingHelper,
    ScheduledOutputTrainingHelper,
    TrainingHelper,
)
from throughtime.decode.loss import sequence_loss, sequence_mask
from throughtime.decode.monotonic import hardmax, monotonic_attention, safe_cumprod
from throughtime.decode.raw import raw_rnn
from throughtime.decode.search import Hypotheses
from throughtime.decode.strategies import Beam, Greedy, Sample
from throughtime.decode.tree import gather_tree, gather_tree_from_array, tile_batch
from throughtime.decode.wrapper import AttentionOutput, AttentionWrapper, AttentionWrapperState

__all__ = [
    "AttentionMechanism",
    "AttentionOutput",
    "AttentionWrapper",
    "AttentionWrapperState",
    "BahdanauAttention",
    "BahdanauMonotonicAttention",
    "BasicDecoder",
    "BasicDecoderOutput",
    "Beam",
    "BeamSearchDecoder",
    "BeamSearchDecoderOutput",
    "BeamSearchDecoderState",
    "CustomHelper",
    "Decoder",
    "FinalBeamSearchDecoderOutput",
    "Generation",
    "Greedy",
    "GreedyEmbeddingHelper",
    "Helper",
    "Hypotheses",
    "InferenceHelper",
    "LuongAttention",
    "LuongMonotonicAttention",
    "Memory",
    "Sample",
    "SampleEmbeddingHelper",
    "ScheduledEmbeddingTrainingHelper",
    "ScheduledOutputTrainingHelper",
    "StreamedStep",
    "TrainingHelper",
    "dynamic_decode",
    "gather_tree",
    "gather_tree_from_array",
    "generate",
    "generate_stream",
    "hardmax",
    "monotonic_attention",
    "raw_rnn",
    "safe_cumprod",
    "sequence_loss",
    "sequence_mask",
    "tile_batch",
]
