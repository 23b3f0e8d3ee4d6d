"""The engine: token ids in, filled holes out. It never sees text.

engine -> scheduler (who takes part in the next step) -> the model's decoder: `draft` (drafts that a
backbone verifies) or `canvas` (slots that a denoiser fills alone), on a runner of `run`.
"""
