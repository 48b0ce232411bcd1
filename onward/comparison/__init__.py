"""Comparisons of recipes and runs: who takes part, what each has cost, the whole."""
