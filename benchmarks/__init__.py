"""Repeatable time and memory measurements of attzoo's blocks and of equivalent blocks in other libraries."""
