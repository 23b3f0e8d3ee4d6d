"""The denoiser, its training and its engine. Editors reach all of it through `model.api`."""
