"""Iterations: a method learns from a batch of clicks, several times with other values of its parameters, and the best
model takes the place of the one before if it is better beyond noise."""
