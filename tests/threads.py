"""Calls in threads of their own."""

import threading


def in_thread(call):
    """What a call returns in a thread of its own, or raises there."""
    found, errors = [], []

    def work():
        try:
            found.append(call())
        except Exception as error:   # raised again below
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return found[0]
