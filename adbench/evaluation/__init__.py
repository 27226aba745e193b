"""From scores to metrics, thresholds and pictures: everything that a test measures."""
