"""What fuse-attention consists of: the match, the masks, and what an `Attention` takes over from its neighbours."""
