"""The console: the live fleet and a chat playground on one page."""
