"""The compiled extension: whether it is there, when it runs, its memory."""
