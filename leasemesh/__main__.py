"""`python -m leasemesh` is the command `leasemesh`."""

from leasemesh.node.cli import main

main()
