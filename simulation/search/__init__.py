"""The search for the most learning per unit of privacy: campaigns in one process, without the protocol around them."""
