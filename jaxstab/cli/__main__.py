"""`python -m jaxstab.cli` is the `jaxstab` command too."""

from jaxstab.cli import main

main()
