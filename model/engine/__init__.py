"""The denoising engine: token ids in, filled canvases out. It never sees text.

engine -> scheduler (who takes part in the next step) -> model_runner (contexts from the cache,
one forward) -> sampler (which slots to commit), until no slot is masked.
"""
