"""Faults under load: clients that keep a journal, a nemesis that breaks things, an oracle that knows every token."""
