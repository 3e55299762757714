"""`python -m jaxstab` is the `jaxstab` command."""

from jaxstab.cli import main

main()
