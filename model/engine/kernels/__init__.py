"""Triton kernels of a backbone's forward on CUDA, each beside the plain torch function it must
equal.

`reference` runs anywhere and imports no triton; `paged_attention`, `layer` and `head` do. Shape
letters: B streams, N new rows of each, P pages of PAGE_SIZE tokens, H query heads, G key/value
heads, D head dimension, E hidden size, F outputs of joint projections, V vocabulary, M rows of all
streams together.
"""
