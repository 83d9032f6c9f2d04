"""The ComfyUI nodes: widgets, tooltips and sockets. ``host.py`` is the one file that touches the host's model."""
