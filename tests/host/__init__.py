"""Tests that need a real ComfyUI, and what they stand on: `host`, `tiny`, `attention`, `inpaint`."""
