"""What fuse-rotary-embedding consists of: the parts of a head, the angles, and the rotation written in them."""
