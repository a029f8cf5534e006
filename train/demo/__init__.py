"""The whole chain on generated scenes, through the public commands, and the page it ends with."""
