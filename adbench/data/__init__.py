"""From files to batches: sources of rows, the cache of decoded images, protocols, the data module."""
