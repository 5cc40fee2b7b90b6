"""Files of weights → pre-trained networks, nothing in them executed; and files written in plain types."""
