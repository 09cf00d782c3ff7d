"""The arithmetic that specs and bodies share, said once per framework: numpy.py is the meaning of the other two."""
