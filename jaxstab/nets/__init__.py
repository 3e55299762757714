"""What is studied: initializers, stacks and classifiers, pure functional Flax."""

from jaxstab.nets import initializers as initializers
