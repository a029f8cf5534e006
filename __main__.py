"""`python -m physseg`: the command line."""

from .cli import main

main()
