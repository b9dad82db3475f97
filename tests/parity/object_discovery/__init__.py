"""Checkers of the recorded cases of object discovery."""
