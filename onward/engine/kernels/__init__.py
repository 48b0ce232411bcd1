"""Fast steps, each of which equals automatic differentiation to a stated tolerance.

A block without one trains by automatic differentiation. What they need of a kind of layer and a
kind of objective is found in the tables of `closed_form`.
"""
