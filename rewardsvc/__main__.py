"""`python -m rewardsvc`."""

from rewardsvc.cli import main

main()
