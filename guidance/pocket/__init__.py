"""The small priors that ship with the project: their objects, their training and their weights."""
