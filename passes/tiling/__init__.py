"""What `tile-memory` is made of: cuts of operators, pieces of segments, their memory and time, and the search."""
