"""The rules and the values that need nothing but themselves: ids, the clock, ownership, JSON, errors.

What reads a file, the time or chance does not belong here.
"""
