"""Baselines that a router must beat: one small file each, all behind `protocol.Baseline`."""
