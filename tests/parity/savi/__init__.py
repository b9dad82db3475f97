"""Checkers of the recorded cases of SAVi, SAVi++ and STATM."""
