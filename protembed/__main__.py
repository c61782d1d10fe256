"""`python -m protembed` is the command line."""

from protembed.cli import main

main()
