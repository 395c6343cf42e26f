"""The page of `contextcrf demo`. `page` and `server` need the extra "demo", the rest does not."""
