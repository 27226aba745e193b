"""Reads finished runs and never trains: tidy table, paper tables, ranks, curves, one HTML page, a W&B workspace."""
