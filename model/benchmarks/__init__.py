"""`mezzotint bench`: how fast the engine is, held against baselines, a peer, a floor and our goals."""
