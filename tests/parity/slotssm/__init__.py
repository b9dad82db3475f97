"""Checkers of the recorded cases of SlotSSM and its Mamba mixers."""
