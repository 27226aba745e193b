"""The detectors: subclasses of `base.Method`, which name networks and losses and turn images into scores."""
