"""The private sum: state machines of device and server, without input or output. PROTOCOL.md, sections 10 to 15."""
