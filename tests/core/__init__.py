"""Tests of `hilo_core` alone: torch, NumPy and OpenCV, kornia to compare with, no ComfyUI."""
