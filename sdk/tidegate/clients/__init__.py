"""What carries a client's requests over the wire. `tidegate.client` is what users see."""
