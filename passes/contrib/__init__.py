"""Parts of `use-contrib-operators`."""
