"""Drivers own a clock and feed the core: `sim` in virtual time, `live` on an asyncio loop."""
