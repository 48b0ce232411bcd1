"""Obeys a plan and a placement: what each rank does, keeps, and goes on from."""
