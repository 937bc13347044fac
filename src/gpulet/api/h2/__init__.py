"""Our own HTTP/2 for gRPC: bytes in, events out, without I/O (`connection`); gRPC on top (`rpcs`); on asyncio (`protocol`)."""
