"""Call functions in separate threads."""

import threading


def in_thread(call):
    """Call a function in a new thread and return its result, or raise its exception."""
    results, errors = [], []

    def work():
        try:
            results.append(call())
        except Exception as error:   # raised again in the calling thread
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
