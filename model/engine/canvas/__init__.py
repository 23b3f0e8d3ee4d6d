"""Canvases: slots that a denoiser fills over a few steps, without a backbone's verdict."""
