"""The neural network and nothing else: configurations, encoders, experts, learned prompts, decoder, checkpoints."""

from SegMoTELib.network.checkpoints import load_checkpoint, save_checkpoint
from SegMoTELib.network.config import AutoTarget, ModelConfig
from SegMoTELib.network.decoder import MaskPrediction
from SegMoTELib.network.encoders import ImageEmbedding
from SegMoTELib.network.model import SegMoTE, build_model

__all__ = ["AutoTarget", "ImageEmbedding", "MaskPrediction", "ModelConfig", "SegMoTE", "build_model",
           "load_checkpoint", "save_checkpoint"]
