"""Triton kernels of a denoising step on CUDA, each beside the plain torch function it must equal.

`reference` runs anywhere and imports no triton; `paged_attention` and `head` do. Shape letters as
in `model.attention`; P pages of PAGE_SIZE tokens, M canvas slots of all rows of a batch together.
"""
