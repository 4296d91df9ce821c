"""Datasets, samplers, transforms and detectors for mmdet."""
