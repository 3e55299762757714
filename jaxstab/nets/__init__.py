"""What is studied: initializers, layers and classifiers, pure functional Flax."""

from jaxstab.nets import initializers as initializers
