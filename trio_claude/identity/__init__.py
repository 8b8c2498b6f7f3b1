"""Who a client is: API keys, JSON Web Tokens and one-use tickets become an `Identity`.

Rules: `now` is an argument; a credential is never kept, logged or part of an error, and of a wrong one nobody learns
what is wrong with it.
"""

from .gatekeeper import Gatekeeper
from .people import LOCAL, ROLES, Identity, packed, unpacked
from .tickets import Tickets

__all__ = ["LOCAL", "ROLES", "Gatekeeper", "Identity", "Tickets", "packed", "unpacked"]
