"""The published papers' tables, from their own measurements, beside what we make of them."""
