"""What should happen: closed forms and Gaussian integrals, with no keys, no networks and no files.

Names are loaded when they are first used (the stub beside this file says from where). Weights have standard deviation
sigma_w / sqrt(fan_in), biases sigma_b; an activation is a name, or any elementwise JAX function of one array.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
