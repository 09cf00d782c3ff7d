"""Reference implementations of the operations, in NumPy. Arrays are channels first, (N, C, *S).

Each folder of operations has numpy.py, torch.py and keras.py, with the same names in the same order.
"""

from .activations.numpy import *
from .channels.numpy import *
from .convolution.numpy import *
from .norms.numpy import *
from .pooling.numpy import *
from .resizing.numpy import *
