"""Building blocks of specs: descriptions of weights, checks of arguments and inputs, variants and sources.

This package imports no framework and computes nothing on arrays; `attzoo.ops` does.
"""

from __future__ import annotations

from typing import Any, Final

from ..hints import NamedArguments as NamedArguments
from ..moved import moved
from .arguments import arguments as arguments
from .arguments import channels_of as channels_of
from .arguments import make_divisible as make_divisible
from .arguments import refuse_idle_rules as refuse_idle_rules
from .arguments import rule_for as rule_for
from .arguments import set_fields as set_fields
from .arguments import upgraded as upgraded
from .arguments import without_idle_rules as without_idle_rules
from .arrays import Array as Array
from .arrays import Coefficients as Coefficients
from .arrays import Shape as Shape
from .arrays import by_name as by_name
from .arrays import contiguous as contiguous
from .arrays import join_path as join_path
from .arrays import map_coefficients as map_coefficients
from .checks import check_groups as check_groups
from .checks import check_shape as check_shape
from .checks import choice as choice
from .checks import flag as flag
from .checks import integer as integer
from .checks import integers as integers
from .checks import number as number
from .checks import odd as odd
from .checks import positive as positive
from .checks import positives as positives
from .checks import short_repr as short_repr
from .checks import shorten as shorten
from .environment import is_older as is_older
from .environment import is_out_of_memory as is_out_of_memory
from .environment import require as require
from .environment import triton_first as triton_first
from .specs import AnySpec as AnySpec
from .specs import Example as Example
from .specs import Keys as Keys
from .specs import Source as Source
from .specs import Spec as Spec
from .specs import Unsupported as Unsupported
from .specs import Variant as Variant
from .weights import Weight as Weight
from .weights import batch_norm as batch_norm
from .weights import fan_in_uniform as fan_in_uniform
from .weights import group_norm as group_norm
from .weights import kaiming_normal as kaiming_normal
from .weights import layer_norm as layer_norm
from .weights import prefixed as prefixed
from .weights import without_prefix as without_prefix

GATES: Final = ("sigmoid", "hard_sigmoid")
ACTIVATIONS: Final = ("relu", "silu", "hard_swish")   # of hidden units
STARTS: Final = ("default", "identity")   # of a block that is put into a network


def __getattr__(name: str) -> Any:
    """Return an attribute of this module by its deprecated name, with a DeprecationWarning."""
    return moved(__name__, name, {"accept": "attzoo.contract.check_shape", "settle": "attzoo.contract.set_fields"})
