"""Calls of the API from their arrival to their end: what is written down of each, and who is told."""
