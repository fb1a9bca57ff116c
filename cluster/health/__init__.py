"""Health of a gateway in three answers: live, ready, progressing; and how each is known."""
