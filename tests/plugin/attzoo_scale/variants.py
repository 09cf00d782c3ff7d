"""Published choices of Scale's arguments."""

from attzoo.contract import Variant

VARIANTS = {"open": Variant("a test of attzoo", {"start": 4.0})}
