"""What a group of four processes does, for all tests that need one: see `ranks`."""

NUM_RANKS = 4

JOBS = {}
"""Size of the world and function of each job, by name, in order."""


def job(num_ranks):
    """Make a function a job for the first ranks of the group."""

    def register(function):
        JOBS[function.__name__] = (num_ranks, function)
        return function

    return register
