"""Training: folders of code -> corpus shards -> batches of canvases -> a checkpoint."""
