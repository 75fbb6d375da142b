"""Turns a data set and a config into an artifact."""
