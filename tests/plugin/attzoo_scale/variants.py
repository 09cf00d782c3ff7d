"""Published variants of Scale."""

from attzoo.contract import Variant

VARIANTS = {"open": Variant("a test of attzoo", {"start": 4.0})}
