"""Folders of code -> a packed corpus: compressed shards of whole files and a manifest.

`shards` is all that training reads and needs no library. Packing (`packing`, from `sources`,
`licences`, `filters` and `benchmarks`) needs the syntax trees, and what it needs stays out of here.
"""

from model.training.corpus.shards import Document, is_packed, read_shard, write_shard

__all__ = ["Document", "is_packed", "read_shard", "write_shard"]
