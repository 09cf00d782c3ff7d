"""Repeatable time and memory measurements of attzoo's blocks and of equivalent blocks in other libraries.

Words of this package: a case is a block or network with input shapes, dtype, layout and mode. A provider is an
implementation that computes a case: attzoo's, or that of another library, a peer; eager, compiled or fused. The first
peer is the reference, with whose time others are compared. A row is the result of one provider in one case. A clock is
a way to measure time. A turn is a function that calls a provider repeatedly and returns the seconds per call; in a
round every provider has one turn. The time "in copies" is a multiple of the time of copying the first input x. A
setting is a case without block and mode; the base case of a block is the one that is timed first.
"""
