"""`mezzotint bench`: how fast the engine is, beside baselines, a peer, a floor and our goals."""
