"""Which runner a forward gets."""

from __future__ import annotations

from model.engine.run.backbone_runner import BackboneRunner
from model.engine.run.cuda_forward import CudaForward
from model.engine.run.cuda_runner import CudaRunner
from model.engine.run.forward import DenoiserForward, Forward


def runner_for(
    forward: Forward, *, denoiser: DenoiserForward | None = None, cache_bytes: int | None = None
) -> BackboneRunner:
    """The runner that makes the most of a forward; arguments as `BackboneRunner` has them."""
    if isinstance(forward, CudaForward):
        return CudaRunner(forward, denoiser=denoiser, cache_bytes=cache_bytes)
    return BackboneRunner(forward, denoiser=denoiser, cache_bytes=cache_bytes)
