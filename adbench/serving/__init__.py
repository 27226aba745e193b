"""A detector behind HTTP: scores, decisions and overlays for uploaded images."""
