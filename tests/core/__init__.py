"""Tests of `hilo_core` alone: torch, NumPy, OpenCV and kornia, no ComfyUI."""
