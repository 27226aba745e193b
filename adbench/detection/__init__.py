"""Detectors for new images, their graphs and their pictures."""
