"""A real ComfyUI for the demo, the benches and the tests: find one, import it or start it as a server, run saved
workflows on it."""
