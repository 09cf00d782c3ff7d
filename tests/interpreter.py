"""Patch Triton's interpreter: same results in a fraction of the time, and an error when integers overflow."""

import inspect
import operator
from types import SimpleNamespace

import numpy as np
import triton.language as tl
from triton.language.core import is_builtin
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

EXACT = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
sample_builtins = {}   # package -> name of one of its builtins
languages = {}   # module of a function -> names of the Triton modules that it uses
interpreted = []   # names of the Triton modules that are patched now, one set per function that requested a patch
numpy_dtypes, blocks, shapes = {}, {}, {}   # name of a Triton type -> NumPy dtype, block attributes, shape


def patch_builtin(package, *args, original=interpreter._patch_builtin):
    """Patch the builtins of a package once per kernel; Triton patches them again for every function call."""
    if package not in sample_builtins:
        builtins = (name for name, member in inspect.getmembers(package) if is_builtin(member))
        sample_builtins[package] = next(builtins, None)
    name = sample_builtins[package]
    if name is None or is_builtin(getattr(package, name)):
        original(package, *args)


def patch_tensor(tensor, scope, original=interpreter._patch_lang_tensor):
    """Patch tensors, and convert a scalar to an index; Triton 3.6 does that by a call that NumPy 2.4 rejects."""
    original(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))


def patch_language(function, original=interpreter._patch_lang):
    """Patch the Triton modules that a function uses, unless its calling kernel has patched them."""
    name = function.__module__
    if name not in languages:
        modules = [value for value in function.__globals__.values() if inspect.ismodule(value)]
        languages[name] = {module.__name__ for module in modules if module in (tl, tl.core)}
    if any(languages[name] <= modules for modules in interpreted):
        return SimpleNamespace(restore=lambda: None)
    patches, outer_count = original(function), len(interpreted)
    interpreted.append(languages[name])

    def restore(restore=patches.restore):
        """Undo the patches of a kernel, with those of the functions that it calls, which Triton does not undo."""
        del interpreted[outer_count:]
        restore()

    patches.restore = restore
    return patches


def numpy_dtype(dtype, original=interpreter._get_np_dtype):
    """Return the NumPy dtype of a Triton dtype. Triton builds the table of all dtypes at every call."""
    name = dtype.scalar.name
    if name not in numpy_dtypes:
        numpy_dtypes[name] = original(dtype)
    return numpy_dtypes[name]


def make_block(self, element_ty, shape, original=tl.block_type.__init__):
    """Initialise a block type; types of equal element type and shape share their attributes, which are constant."""
    key = element_ty.name, *shape
    if key not in blocks:
        original(self, element_ty, shape)
        blocks[key] = vars(self).copy()
    vars(self).update(blocks[key], element_ty=element_ty)


def make_tensor(self, handle, type, original=tl.tensor.__init__):
    """Initialise a tensor; tensors of equal type share their shape, which is constant."""
    name = type.name
    if name not in shapes:
        original(self, handle, type)
        shapes[name] = {"shape": self.shape, "numel": self.numel}
    vars(self).update(shapes[name], handle=handle, type=type, dtype=type.scalar)


def sanitize(self, a, b, operation, original=TritonSemantic.binary_op_sanitize_overflow_impl):
    """Assert that the result of an integer operation fits its dtype, with fewer operations than Triton's own check."""
    kind = a.type.scalar
    if not isinstance(self.builder, interpreter.InterpreterBuilder) or operation.__name__ not in EXACT:
        original(self, a, b, operation)
    elif kind.int_bitwidth < 64:
        assert kind == b.type.scalar, f"expected matching operands, got {kind} and {b.type.scalar}"
        result = EXACT[operation.__name__](a.handle.data.astype(np.int64), b.handle.data.astype(np.int64))
        fits = kind.get_int_min_value() <= result.min() and result.max() <= kind.get_int_max_value()
        assert fits, f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}"


def reduce_halves(self, inputs, original=interpreter.ReduceOps.generic_reduce):
    """Reduce a tensor along an axis of a power of 2 by combining its halves with the kernel's own function."""
    axis = getattr(self.axis, "value", self.axis)
    if axis is None or len(inputs) > 1:
        return original(self, inputs)
    (tensor,) = inputs
    data = tensor.handle.data
    while data.shape[axis] > 1:
        halves = (self.to_tensor(half, tensor.dtype) for half in np.split(data, 2, axis))
        data = self.combine_fn.fn(*halves).handle.data
    return [self.to_tensor(data if self.keep_dims else data.squeeze(axis), tensor.dtype)]


interpreter._patch_builtin = patch_builtin
interpreter._patch_lang_tensor = patch_tensor
interpreter._patch_lang = patch_language
interpreter._get_np_dtype = numpy_dtype
interpreter.ReduceOps.generic_reduce = reduce_halves
tl.block_type.__init__ = make_block
tl.tensor.__init__ = make_tensor
TritonSemantic.binary_op_sanitize_overflow_impl = sanitize
