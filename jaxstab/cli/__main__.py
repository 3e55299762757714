"""`python -m jaxstab.cli` is the `jaxstab` command."""

from jaxstab.cli import main

main()
