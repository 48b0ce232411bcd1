"""Lets `python -m onward` be the command, as torchrun starts it."""

from onward.cli.main import main

main()
