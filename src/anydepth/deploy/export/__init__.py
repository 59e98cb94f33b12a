"""What makes a bundle of a detector, with torch."""
