"""A shop that there is not, and users who click in it, to show how a model learns from clicks."""
