"""The denoiser: fills a canvas in one forward, over the hidden states of a frozen backbone."""

from model.denoiser.checkpoint import load_denoiser, save_denoiser
from model.denoiser.config import DenoiserConfig
from model.denoiser.network import Denoiser

__all__ = ["Denoiser", "DenoiserConfig", "load_denoiser", "save_denoiser"]
