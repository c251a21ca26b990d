"""Traces: what a real Xen recorded, as arrays. Pure; reads bytes, never files or components."""
