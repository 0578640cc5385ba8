"""`python -m node.cli` is the command `leasemesh`."""

from node.cli import main

main()
