"""Commands that look at methods or papers as a whole."""
