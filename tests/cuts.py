"""Runs that are cut before their end."""

from onward.runs.results import Listener


class Cut(Exception):
    """What ends a run here before its time."""


class CutAfter(Listener):
    """Ends a run after some reports.

    Args:
        reports: How many.
    """

    def __init__(self, reports):
        self.left = reports
        self.notes = []

    def progress(self, progress):
        self.left -= 1
        if self.left < 0:
            raise Cut

    def note(self, text):
        self.notes.append(text)
