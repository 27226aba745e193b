"""A method, a data set, a protocol and a callback for adbench."""
