"""Triton's interpreter computes what it does, in a fraction of the time, and finds integers that overflow."""

import inspect
import operator
from types import SimpleNamespace

import numpy as np
import triton.language as tl
from triton.language.core import is_builtin
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

EXACT = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
sample = {}   # one builtin of each package
languages = {}   # by the module of a function: which of Triton's modules it uses
interpreted = []   # which of them are interpreted at present, for each function that has asked for it
numpy_dtypes, blocks, shapes = {}, {}, {}   # by the names of Triton's types: what the interpreter makes of them


def patch_builtin(package, *how, real=interpreter._patch_builtin):
    """Have a package interpreted. Asked at every call of a function, though once for each kernel is enough."""
    if package not in sample:
        sample[package] = next((name for name, member in inspect.getmembers(package) if is_builtin(member)), None)
    name = sample[package]
    if name is None or is_builtin(getattr(package, name)):
        real(package, *how)


def patch_tensor(tensor, scope, real=interpreter._patch_lang_tensor):
    """Have tensors interpreted, and one number be an index: for that Triton 3.6 has a call that NumPy 2.4 refuses."""
    real(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))


def patch_language(function, real=interpreter._patch_lang):
    """Have the modules that a function uses interpreted, unless a kernel that calls it has asked for that."""
    name = function.__module__
    if name not in languages:
        modules = [value for value in function.__globals__.values() if inspect.ismodule(value)]
        languages[name] = {module.__name__ for module in modules if module in (tl, tl.core)}
    if any(languages[name] <= modules for modules in interpreted):
        return SimpleNamespace(restore=lambda: None)
    scope, before = real(function), len(interpreted)
    interpreted.append(languages[name])

    def restore(restore=scope.restore):
        """What a kernel asked for; the interpreter restores nothing of what the functions that it calls asked for."""
        del interpreted[before:]
        restore()

    scope.restore = restore
    return scope


def numpy_dtype(dtype, real=interpreter._get_np_dtype):
    """NumPy's dtype for numbers of Triton's. The interpreter makes the table of all of them at every call."""
    name = dtype.scalar.name
    if name not in numpy_dtypes:
        numpy_dtypes[name] = real(dtype)
    return numpy_dtypes[name]


def make_block(self, element_ty, shape, real=tl.block_type.__init__):
    """A type of blocks; those of one element type and shape have the same attributes, which nobody changes."""
    key = element_ty.name, *shape
    if key not in blocks:
        real(self, element_ty, shape)
        blocks[key] = vars(self).copy()
    vars(self).update(blocks[key], element_ty=element_ty)


def make_tensor(self, handle, type, real=tl.tensor.__init__):
    """A tensor; those of one type have the same shape, which nobody changes."""
    name = type.name
    if name not in shapes:
        real(self, handle, type)
        shapes[name] = {"shape": self.shape, "numel": self.numel}
    vars(self).update(shapes[name], handle=handle, type=type, dtype=type.scalar)


def sanitize(self, a, b, operation, real=TritonSemantic.binary_op_sanitize_overflow_impl):
    """That integers hold what comes of them. The interpreter's own 7 operations take longer, and no outcome fails."""
    kind = a.type.scalar
    if not isinstance(self.builder, interpreter.InterpreterBuilder) or operation.__name__ not in EXACT:
        real(self, a, b, operation)
    elif kind.int_bitwidth < 64:
        assert kind == b.type.scalar, f"expected matching operands, got {kind} and {b.type.scalar}"
        found = EXACT[operation.__name__](a.handle.data.astype(np.int64), b.handle.data.astype(np.int64))
        fits = kind.get_int_min_value() <= found.min() and found.max() <= kind.get_int_max_value()
        assert fits, f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}"


def by_halves(self, inputs, real=interpreter.ReduceOps.generic_reduce):
    """Reduce a tensor along an axis, whose length is a power of 2, by the kernel's own function, halves by halves."""
    axis = getattr(self.axis, "value", self.axis)
    if axis is None or len(inputs) > 1:
        return real(self, inputs)
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
interpreter.ReduceOps.generic_reduce = by_halves
tl.block_type.__init__ = make_block
tl.tensor.__init__ = make_tensor
TritonSemantic.binary_op_sanitize_overflow_impl = sanitize
