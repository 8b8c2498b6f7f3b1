"""The parts of the soak (`../soak.py`): the server and its size, the clients, what they do, what must be true."""
