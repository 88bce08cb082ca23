"""The report on a program as one HTML page: what it shows, and what it is made of."""
