"""The parts of the soak (`../soak.py`): the server and what it holds, the clients, what they do, and what must be true."""
