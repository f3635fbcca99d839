"""`python -m launch`: the same as the command `vitline`."""

from launch.cli import main

main()
