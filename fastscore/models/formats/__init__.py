"""What checkpoint files of published codebases hold, and what their keys and shapes say of the network."""
