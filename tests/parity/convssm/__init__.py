"""Checkers for the cases recorded from ConvSSM, by topic."""
