"""tidegate's doors. Each is found by name through the entry-point group `tidegate.transports`."""
